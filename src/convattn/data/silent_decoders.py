"""Keeping decoders from writing to standard error: what is wrong with a file is told by the error that it raises."""

import contextlib
import ctypes
import logging
from functools import cache

from PIL import _imaging

__all__ = ["silence_decoders"]


@cache
def silence_decoders() -> None:
    """Let libtiff and Pillow's log say nothing on their own; what a program's own log handlers receive stays.

    libtiff is reached through Pillow's library, which brings it; where its functions cannot be had, it goes on talking.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
