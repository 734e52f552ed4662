"""Reading checkpoints safely, the authors' names, and where the authors' files are."""
