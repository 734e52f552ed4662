"""Data sets of labelled images, their transforms and their loaders."""
