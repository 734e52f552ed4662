"""Reading PyTorch's pickled files without running anything that is in them, and without unpacking more than they hold.

PyTorch's own reader (`weights_only=True`) does the work: it calls nothing but what is named to it. Scripts store more
than weights: arguments, dates, paths, NumPy numbers, a configuration of some class. Each such name in the file is given
to the reader as an empty stand-in of ours, so that nothing is imported and nothing of theirs is called.
"""

import _compat_pickle
import errno
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from convattn.shown import shown
from convattn.weights.errors import CheckpointError

__all__ = ["read_pickled"]

# Of the standard library: modules that hold data alone, and what is so in others.
_DATA_MODULES = {"argparse", "collections", "datetime", "decimal", "enum", "fractions", "ipaddress", "pathlib", "uuid"}
_DATA_MODULES |= {"typing", "zoneinfo"}
_DATA_NAMES = {
    *(f"builtins.{name}" for name in ("bool", "bytes", "bytearray", "complex", "dict", "float", "frozenset", "int")),
    *(f"builtins.{name}" for name in ("list", "object", "range", "set", "slice", "str", "tuple", "type")),
    "builtins.Ellipsis",
    "_codecs.encode",  # how an old protocol writes bytes
    "copyreg._reconstructor",
    "random.Random",
    "types.SimpleNamespace",
}
# Of NumPy: its arrays, numbers and types, wherever a version keeps them.
_NUMPY = re.compile(
    r"numpy\.(_?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)|ndarray|dtype|bool_?|str_|bytes_|[a-z]+\d+"
    r"|dtypes\.\w+|random\.\S+)"
)

_MOST_NAMES = 200  # of classes in one file; the reader looks through them at every step
_MOST_GROWTH = 16  # bytes unpacked for each of the file; PyTorch packs nothing, and weights shrink little


class _Empty:
    """Stands for an object; takes any arguments and any state, keeps none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _EmptyDictionary:
    """Stands for an object that may be a dictionary: the reader fills none but those of Python."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class _EmptyList:
    """Stands for an object that is a list of another kind."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


def read_pickled(path: Path) -> Any:
    """What a file of `torch.save` holds; objects that are neither tensors nor plain data are empty stand-ins.

    Raises:
        CheckpointError: if the file is damaged, is of another kind, unpacks to far more than it holds, or names a
            function, which a careless reader would call.
    """
    _check_growth(path)
    named = _foreign_names(path)
    for name in named:
        if not _is_data(name):
            raise _refused(path, name)
    if len(named) > _MOST_NAMES:
        raise CheckpointError(f"{path}: refused, because it names {len(named)} classes beside the weights")
    try:
        try:
            return _load(path, named, _EmptyDictionary)
        except (pickle.UnpicklingError, TypeError, ValueError):  # the state of an object that is no dictionary
            return _load(path, named, _Empty)
    except pickle.UnpicklingError as error:
        refused = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if refused:
            raise _refused(path, refused) from None
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged") from None
    except (KeyError, IndexError):  # what the old format's reader stumbles on in a text, say
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # the reader seeks a place in front of the file's start
            raise CheckpointError(f"{path}: damaged or cut short ({error.strerror})") from None
        raise CheckpointError(f"{path}: could not be read ({error.strerror or error})") from None
    except Exception as error:  # whatever the reader stumbles on in bytes that anyone may have written
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: damaged or cut short ({reason})") from None


def _refused(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: refused, because it asks to load {shown(name)}, which could run code; "
        "have its author save the weights alone, or as .safetensors"
    )


def _load(path: Path, named: list[str], unknown: type) -> Any:
    stand_ins: list[Any] = [(_stand_in(name, unknown), name) for name in named]
    # It warns of other pickle protocols; what it cannot read, it raises at.
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True)


def _stand_in(name: str, unknown: type) -> type:
    if name == "collections.deque":
        return _EmptyList
    return _Empty if name.startswith("numpy.") or name == "random.Random" else unknown


def _is_data(name: str) -> bool:
    """Whether a name in a pickle is that of a class of data. This decides what is refused only: none is ever called."""
    root, last = name.partition(".")[0], name.rpartition(".")[2]
    if root == "numpy":
        return _NUMPY.fullmatch(name) is not None
    if root in sys.stdlib_module_names and root != "__main__":
        return root in _DATA_MODULES or name in _DATA_NAMES
    return last[:1].isupper()  # as classes are written


def _foreign_names(path: Path) -> list[str]:
    """The names in the pickles of a file, but for PyTorch's own functions, which its reader knows or refuses."""
    found: dict[str, None] = {}
    try:
        for stream in _pickles(path):
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name == "GLOBAL":
                    found[_today(*str(argument).split(" ", 1))] = None
    except Exception:  # damaged or of another kind; the reader says how
        pass
    return [name for name in found if not name.startswith("torch.") or name.rpartition(".")[2][:1].isupper()]


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "data.pkl":
                    with archive.open(name) as stream:
                        yield stream
    else:
        with path.open("rb") as stream:
            for _ in range(4):  # in the old format: a number, a version, the system, and what was saved
                yield stream


def _today(module: str, name: str) -> str:
    """A name as old protocols write it (`__builtin__ set`), in today's words."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _check_growth(path: Path) -> None:
    """Refuse an archive whose entries unpack to far more than the file holds, before anything is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # none, or damaged; the reader says how
        return
    held = path.stat().st_size
    if unpacked > _MOST_GROWTH * held:
        raise CheckpointError(f"{path}: refused, because its {held:,} bytes unpack to {unpacked:,}")
