"""Vision backbones in which convolution and attention work together."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from convattn.starting import runs_command as _runs_command
from convattn.version import __version__ as __version__

if _TYPE_CHECKING or not _runs_command():
    from convattn.public import *  # noqa: F403
    from convattn.public import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        """A command imports what it needs; these names come with the first use of one."""
        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_importlib.import_module("convattn.public"), name)
