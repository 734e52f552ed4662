"""Model files: weights with what is needed to build and feed the model again; exported files open through it too."""

from convattn.model_files.description import FORMAT, label_names, read_metadata
from convattn.model_files.model_file import (
    build_within,
    check_can_be_saved,
    is_place,
    load_model,
    open_model,
    save_model,
    stored_kind,
)

__all__ = [
    "FORMAT",
    "build_within",
    "check_can_be_saved",
    "is_place",
    "label_names",
    "load_model",
    "open_model",
    "read_metadata",
    "save_model",
    "stored_kind",
]
