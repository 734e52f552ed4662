"""The ways to run a model that a benchmark compares.

PyTorch's own: `eager`, the model as it is; `fused` and `prepacked`, its inference forms in eager mode; `compile`. And
every file format that `convattn.deploy` knows, by the name of the runtime that runs it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from convattn.deploy.compile import compiled
from convattn.deploy.formats import formats
from convattn.deploy.fuse import fuse
from convattn.deploy.load import ExportedModel
from convattn.deploy.prepack import prepack
from convattn.deploy.runtimes.runtime import Precision, Request
from convattn.nearest import nearest
from convattn.rooms import kind_of, room
from convattn.sizes import Size, image_shape
from convattn.walk import copied

__all__ = [
    "PRECISIONS",
    "PYTORCH",
    "Call",
    "Setting",
    "Unavailable",
    "calls_of",
    "check_runtime",
    "exported_call",
    "file_call",
    "pytorch_calls",
    "pytorch_form",
    "run_by",
    "runtime_names",
    "write_file",
]

Call = Callable[[], object]

PRECISIONS: tuple[str, ...] = get_args(Precision)
PYTORCH = ("eager", "fused", "prepacked", "compile")
_FORMAT_RUN_BY = {"onnxruntime": "onnx"}  # where a runtime is not called like the format it runs

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OF_PYTORCH = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_CALIBRATION_IMAGES = 8  # random ones: they decide the scales, not the speed


class Unavailable(RuntimeError):
    """A runtime that cannot be had for this model, precision or machine; says why."""


@dataclass(frozen=True)
class Setting:
    """What all rows of a comparison have in common; ValueError for what there is not."""

    precision: str = "fp32"
    batch_size: int = 1
    image_size: Size = 224  # pixels; the side of square RGB images, else (channels, height, width)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; choose among {', '.join(PRECISIONS)}")
        if self.batch_size < 1:
            raise ValueError(f"batch {self.batch_size} must be 1 or more")
        if self.device not in _OF_PYTORCH:
            raise ValueError(f"device {self.device!r} is unknown; choose {' or '.join(_OF_PYTORCH)}")
        channels, height, width = shape = image_shape(self.image_size, called="image size")
        object.__setattr__(self, "image_size", height if channels == 3 and height == width else shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return image_shape(self.image_size)

    @property
    def size_text(self) -> str:
        """The size for people, as in "224" or "224 x 320"."""
        channels, *sides = self.shape
        if isinstance(self.image_size, int):
            return str(self.image_size)
        return " x ".join(map(str, sides if channels == 3 else self.shape))

    def images(self) -> Tensor:
        """Random images (B, C, H, W), float32, on the CPU."""
        return torch.randn((self.batch_size, *self.shape), generator=torch.Generator().manual_seed(0))

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.size_text} px, {self.precision}, {self.device}"


def runtime_names() -> tuple[str, ...]:
    """All that can be compared, in the order of the tables."""
    return (*PYTORCH, *_FORMAT_RUN_BY, *(name for name in formats() if name not in _FORMAT_RUN_BY.values()))


def check_runtime(name: str) -> None:
    """Raises ValueError for a name that is not in `runtime_names()`."""
    if name not in runtime_names():
        raise ValueError(f"runtime {name!r} is unknown; {nearest(name, runtime_names())}")


def calls_of(model: nn.Module, runtime: str, setting: Setting, folder: Path) -> tuple[dict[str, Call], Path | None]:
    """The calls that run `model` in any runtime by the layout of the images, and the file in `folder` that they run."""
    if runtime in PYTORCH:
        return pytorch_calls(model, runtime, setting), None
    path = write_file(model, runtime, setting, folder)
    return {"": file_call(path, runtime, setting)}, path


def pytorch_calls(model: nn.Module, runtime: str, setting: Setting) -> dict[str, Call]:
    """The calls that run `model` by one of `PYTORCH`, by the layout of the images.

    `eager` has one in each layout, since a network may be made for either. The model is evaluated, float32 and on the
    CPU; it is left as it is. Unavailable if the runtime does not exist for this model, precision or machine.
    """
    offered = _OF_PYTORCH[setting.device]
    if setting.precision not in offered:
        raise Unavailable(f"PyTorch runs {' and '.join(offered)} on {setting.device}, not {setting.precision}")
    layouts = tuple(_LAYOUTS) if runtime == "eager" else ("channels_last",)
    return {layout: _call(model, runtime, setting, layout) for layout in layouts}


def pytorch_form(model: nn.Module, runtime: str, setting: Setting, layout: str) -> tuple[nn.Module, Tensor]:
    """The module that one of `PYTORCH` runs, before it is compiled, and its images; arguments of `pytorch_calls`."""
    form = copied(model) if runtime == "eager" else fuse(model)
    if runtime == "fused" and not form.fusion_report:
        raise Unavailable("nothing to fuse: no block offers an inference form, no batch norm can be folded")
    to: dict[str, Any] = dict(device=setting.device, dtype=_DTYPES[setting.precision], memory_format=_LAYOUTS[layout])
    form, images = form.to(**to), setting.images().to(**to)
    return (_prepacked(form, images) if runtime == "prepacked" else form), images


def _call(model: nn.Module, runtime: str, setting: Setting, layout: str) -> Call:
    form, images = pytorch_form(model, runtime, setting, layout)
    run: Callable[[Tensor], object] = form
    if runtime == "compile":
        with warnings.catch_warnings(action="ignore"):  # the compiler's
            run = compiled(form, images)

    def call() -> object:
        with torch.inference_mode():
            return run(images)

    return call


def _prepacked(fused: nn.Module, images: Tensor) -> nn.Module:
    if images.device.type != "cpu":
        raise Unavailable("weights are prepacked for CPUs only")
    try:
        return prepack(fused, images)
    except RuntimeError as error:
        raise Unavailable(str(error)) from None


def write_file(model: nn.Module, runtime: str, setting: Setting, folder: Path) -> Path:
    """The inference form of `model` as a file in `folder`, for these images only.

    Raises:
        Unavailable: if the format has no such precision, or is not run on this device. MissingExtra: if the runtime is
            not installed. Whatever the runtime's converter raises.
    """
    name = _FORMAT_RUN_BY.get(runtime, runtime)
    format = formats()[name]
    if setting.precision not in format.PRECISIONS:
        raise Unavailable(f"{name} files are written in {', '.join(format.PRECISIONS)}, not {setting.precision}")
    if setting.device != "cpu":
        raise Unavailable(f"{runtime} is measured on the CPU")
    images = setting.images()
    calibration = tuple(torch.randn(_CALIBRATION_IMAGES, 1, *images.shape[1:])) if setting.precision == "int8" else ()
    path = folder / f"model{format.SUFFIX}"
    kind = kind_of(model)
    task = None if kind is None else room(kind)
    written = model if task is None else task.for_export(model, task.words.export())
    apart = getattr(written, "in_float32", ())
    request = Request(images, "none", setting.precision, calibration, in_float32=apart)
    format.write(fuse(written), request, path)
    return path


def run_by(format: str) -> str:
    """The name of the runtime that runs files of a format."""
    return next((runtime for runtime, name in _FORMAT_RUN_BY.items() if name == format), format)


def exported_call(model: ExportedModel, setting: Setting) -> Call:
    """A call of an exported file as it is; Unavailable if it is in another precision, or is not run on this device."""
    known = model.metadata
    if known is not None and known.precision != setting.precision:
        raise Unavailable(f"the file is in {known.precision}")
    if setting.device != "cpu":
        raise Unavailable("files are measured on the CPU")
    images = setting.images()
    return lambda: model(images)


def file_call(path: Path, runtime: str, setting: Setting) -> Call:
    """A call that runs the file, with as many threads as PyTorch has; CannotRunHere or MissingExtra if it cannot."""
    run = formats()[_FORMAT_RUN_BY.get(runtime, runtime)].open_file(path)
    images = setting.images()
    return lambda: run(images)
