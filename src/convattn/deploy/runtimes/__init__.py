"""One module per file format: how it is written, described, read back and run."""
