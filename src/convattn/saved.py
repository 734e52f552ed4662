"""The earlier name of `convattn.model_files`: programs written with it go on working."""

from convattn.model_files import label_names, load_model, open_model, read_metadata, save_model

__all__ = ["label_names", "load_model", "open_model", "read_metadata", "save_model"]
