"""Reading a checkpoint file without running anything that is in it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from convattn.shown import is_utf8, shown
from convattn.weights.errors import CheckpointError
from convattn.weights.pickles import read_pickled

__all__ = [
    "CheckpointError",
    "check_name",
    "dictionaries",
    "is_averaged",
    "is_state",
    "read_checkpoint",
    "read_state_dict",
    "unwrap_state_dict",
]

_MOST_GROWTH = 16  # bytes of weights for each of the file
_MOST_LEVELS = 8  # of dictionaries in dictionaries
_AVERAGED = {"ema", "swa", "avg", "average", "averaged", "shadow", "teacher"}
# How the state of an optimiser is called, and gradients: they have the names and shapes of weights.
_STATE = re.compile(r"optim|exp_?avg|^(sum_)?(grads?|gradients?|momentum|velocity|fisher)(_buffer)?s?$", re.IGNORECASE)

# What people have under the name of a checkpoint, by how it starts.
_OTHER_FILES = {
    b"version https://git-lfs": "a pointer of git-lfs, not the file; fetch it with `git lfs pull`",
    b"<": "a web page or XML, not a checkpoint; download the file itself",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first",
    b"\x89HDF": "an HDF5 file, not a PyTorch checkpoint",
    b"\x93NUMPY": "a NumPy array, not a PyTorch checkpoint",
}


def read_checkpoint(path: str | Path) -> Any:
    """What a `.safetensors` file or a pickled PyTorch checkpoint holds.

    The kind is told by the content, not by the suffix. Pickles are read with `weights_only=True`: a file that would run
    code is refused, and objects other than tensors and plain data are replaced by empty ones.

    Raises:
        CheckpointError: in one line with the file's name, if it is missing, damaged or refused.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: no such file; it is a folder, name a checkpoint in it")
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file{'; it is no ordinary one' if path.exists() else ''}")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read ({error.strerror or error})") from None
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    for signature, kind in _OTHER_FILES.items():
        if start.lstrip().startswith(signature):
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged: {kind}")
    if start[257:262] == b"ustar":
        raise CheckpointError(
            f"{path}: not a PyTorch checkpoint, or damaged: a tar archive; unpack it, or save it with a newer PyTorch"
        )
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size
    content = _read_safetensors(path) if is_safetensors or path.suffix == ".safetensors" else read_pickled(path)
    for _, tensors in dictionaries(content):
        claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if claimed > _MOST_GROWTH * size + 2**20:  # one number may be shown as a tensor of any size
            raise CheckpointError(
                f"{path}: refused, because its {size:,} bytes claim to be {claimed:,} bytes of weights"
            )
    return content


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The largest dictionary of tensors in a checkpoint, as they are named there; averaged weights among equals.

    Raises:
        CheckpointError: as `read_checkpoint`, or if there is none.
    """
    return unwrap_state_dict(read_checkpoint(path), name=str(path))


def check_name(path: Path) -> None:
    """Refuse a path that safetensors does not open; raises CheckpointError."""
    if not is_utf8(path):
        raise CheckpointError(f"{shown(path)}: its path is not UTF-8, and safetensors opens no other; rename it")


def unwrap_state_dict(content: Any, *, name: str = "checkpoint") -> dict[str, Tensor]:
    """The largest dictionary of tensors in what was read, averaged weights among equals; `name` is for the error.

    Raises:
        CheckpointError: if there is none.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name}: holds {type(content).__name__}, not a dictionary of weights")
    found = list(dictionaries(content))
    if not found and any("_modules" in getattr(part, "__dict__", {}) for part in (content, *content.values())):
        raise CheckpointError(f"{name}: holds a whole model and not its weights; save those of model.state_dict()")
    if not content:
        raise CheckpointError(f"{name}: holds no weights")
    if not found:
        raise CheckpointError(
            f"{name}: entry {next(iter(content))!r} is not a tensor; no dictionary in it holds weights"
        )
    return max(found, key=lambda place_and_tensors: (len(place_and_tensors[1]), is_averaged(place_and_tensors[0])))[1]


def is_averaged(words: Iterable[str]) -> bool:
    """Whether the names on the way to some weights say that they are a moving average."""
    return any(_AVERAGED & {*re.split(r"[^a-z]+", word.lower())} for word in words)


def is_state(words: Iterable[str]) -> bool:
    """Whether the names on the way to some tensors say that they are an optimiser's, or gradients: no weights."""
    return any(_STATE.search(word) for word in words)


def dictionaries(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary in what was read that holds tensors by name: the way to it, and those tensors; outer first.

    The state of an optimiser is none, whether its tensors are by number or by name.
    """
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(_MOST_LEVELS):
        deeper = []
        for place, value in level:
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            seen.add(id(value))
            names = {key: entry for key, entry in value.items() if isinstance(key, str)}
            tensors = {key: entry for key, entry in names.items() if isinstance(entry, Tensor)}
            if tensors:
                yield place, tensors
            deeper += [
                ((*place, key), entry)
                for key, entry in names.items()
                if isinstance(entry, Mapping) and not is_state([key])
            ]
        level = deeper


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    check_name(path)
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read ({error.strerror or error})") from None
    except Exception as error:  # of safetensors, or of a type of numbers that this version does not know
        raise CheckpointError(f"{path}: damaged or cut short ({' '.join(str(error).split())[:200]})") from None
