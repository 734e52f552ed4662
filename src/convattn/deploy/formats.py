"""The file formats by name."""

from pathlib import Path

from convattn.deploy.runtimes import (
    aot_inductor,
    core_ml,
    executorch,
    onnx,
    openvino,
    tensor_rt,
    torch_export,
)
from convattn.deploy.runtimes.runtime import Runtime

__all__ = ["FORMATS", "format_of"]

FORMATS: dict[str, Runtime] = {
    "onnx": onnx,
    "torch_export": torch_export,
    "aot_inductor": aot_inductor,
    "openvino": openvino,
    "core_ml": core_ml,
    "executorch": executorch,
    "tensor_rt": tensor_rt,
}


def format_of(path: Path, format: str | None = None) -> str:
    """The name of the format to write `path` in: `format` if given, else by the suffix.

    Raises:
        ValueError: for an unknown format or suffix.
    """
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format {format!r} is unknown; choose one of {', '.join(FORMATS)}")
        return format
    for name, runtime in FORMATS.items():  # where two formats share a suffix, the first has it
        if path.suffix == runtime.SUFFIX:
            return name
    known = ", ".join(f"{runtime.SUFFIX} ({name})" for name, runtime in FORMATS.items())
    raise ValueError(f"{path}: no format has the suffix {path.suffix!r}; known: {known}")
