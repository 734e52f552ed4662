"""The file formats by name: ours, and those that a package offers by an entry point of the group `convattn.runtimes`.

An entry point names a format and a module with the names of `Runtime`. Core ML, ExecuTorch and TensorRT, which few
machines run, come in this way too: the table is in `pyproject.toml`.
"""

import warnings
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from convattn.deploy.runtimes import aot_inductor, onnx, openvino, torch_export
from convattn.deploy.runtimes.runtime import Runtime

__all__ = ["GROUP", "format_of", "formats"]

GROUP = "convattn.runtimes"

_NAMES = (*Runtime.__annotations__, *(name for name in vars(Runtime) if not name.startswith("_")))


@cache
def formats() -> dict[str, Runtime]:
    """The runtimes by the names of their formats. What a package offers that cannot be used is named in a warning."""
    found: dict[str, Runtime] = {
        "onnx": onnx,
        "torch_export": torch_export,
        "aot_inductor": aot_inductor,
        "openvino": openvino,
    }
    for entry in entry_points(group=GROUP):
        try:
            runtime = entry.load()
            if entry.name in found:
                raise ValueError("another format has that name")
            lacks = [name for name in _NAMES if not hasattr(runtime, name)]
            if lacks:
                raise TypeError(f"{entry.value} has no {', '.join(lacks)}")
        except Exception as error:  # whatever somebody's module raises: the other formats are there
            why = " ".join(str(error).split()) or type(error).__name__
            package = entry.dist.name if entry.dist else "a package"
            warnings.warn(
                f"the format {entry.name!r} of {package} cannot be used: {why}; update or remove it", stacklevel=2
            )
        else:
            found[entry.name] = runtime
    return found


def format_of(path: Path, format: str | None = None) -> str:
    """The name of the format to write `path` in: `format`, or else by the suffix; ValueError for an unknown one."""
    if format is not None:
        if format not in formats():
            raise ValueError(f"format {format!r} is unknown; choose one of {', '.join(formats())}")
        return format
    for name, runtime in formats().items():  # where two formats share a suffix, the first has it
        if path.suffix == runtime.SUFFIX:
            return name
    known = ", ".join(f"{runtime.SUFFIX} ({name})" for name, runtime in formats().items())
    raise ValueError(f"{path}: no format has the suffix {path.suffix!r}; known: {known}")
