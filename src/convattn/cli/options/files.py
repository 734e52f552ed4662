"""What files commands take, in words for their help."""

from convattn.data.images import FORMATS
from convattn.deploy.suffixes import SUFFIXES

__all__ = ["IMAGES", "MODEL"]

IMAGES = ", ".join(FORMATS)

_EXPORTED = ", ".join(dict.fromkeys(SUFFIXES.values()))
MODEL = (
    f"A run folder, a model file (.safetensors), an exported file ({_EXPORTED}; a .pt2 runs code of whoever wrote it), "
    "or the name of a model with published weights (`timm:NAME` for timm's)."
)
