"""What a model costs: counted, timed, compared."""
