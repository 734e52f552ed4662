"""The ways to run a model that a benchmark compares."""

import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from convattn.deploy.fuse import fuse
from convattn.deploy.prepack import prepack
from convattn.deploy.runtimes import onnx
from convattn.deploy.runtimes.runtime import Request

__all__ = ["FORMS", "Unavailable", "prepare"]


class Unavailable(RuntimeError):
    """A form that cannot be had for this model, precision or machine; says why."""


def prepare(model: nn.Module, form: str, images: Tensor) -> Callable[[], object]:
    """A call without arguments that runs `model` in this form on `images`.

    Args:
        model: evaluated, in the precision of `images`; it is left as it is.
        form: one of `FORMS`.
        images: (B, C, H, W).

    Raises:
        Unavailable: if the form does not exist for this precision or machine. ValueError: for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is unknown; choose among {', '.join(FORMS)}")
    run = FORMS[form](model, images)

    def call() -> object:
        with torch.inference_mode():
            return run(images)

    return call


def _eager(model: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    return deepcopy(model)


def _channels_last(model: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    layout = torch.channels_last
    moved = deepcopy(model).to(memory_format=layout)
    held = images.to(memory_format=layout)
    return lambda _: moved(held)


def _fused(model: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    fused = fuse(model)
    if not fused.fusion_report:
        raise Unavailable("nothing to fuse: no block of this model offers an inference form")
    return _channels_last(fused, images)


def _prepacked(model: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    held = images.to(memory_format=torch.channels_last)
    try:
        packed = prepack(fuse(model), held)
    except RuntimeError as error:
        raise Unavailable(str(error)) from None
    return lambda _: packed(held)


def _compiled(model: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    compiled = torch.compile(fuse(model), fullgraph=True)
    held = images.to(memory_format=torch.channels_last)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        compiled(held)
    return lambda _: compiled(held)


def _onnxruntime(model: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    if images.dtype is not torch.float32:
        raise Unavailable("ONNX Runtime's CPU kernels for convolution and attention take float32 only")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.write(fuse(model), Request(images), path)
        return onnx.open_file(path)


FORMS: dict[str, Callable[[nn.Module, Tensor], Callable[[Tensor], object]]] = {
    "eager": _eager,
    "channels_last": _channels_last,
    "fused": _fused,
    "prepacked": _prepacked,
    "compiled": _compiled,
    "onnxruntime": _onnxruntime,
}
