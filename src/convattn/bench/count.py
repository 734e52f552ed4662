"""Parameters, multiply-adds and activations of a model, without running it.

Torch's counter knows convolutions and matrix products. A module that multiplies and adds by other means, elementwise or
in a kernel of its own, tells how often by a method

    kernel_macs(inputs: tuple[Tensor, ...], output: Tensor) -> int

which sees the shapes of one call. It stands for everything the module does itself, however that is computed at present;
what its children do is counted besides.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convattn.sizes import Size, input_shape
from convattn.walk import probe

__all__ = ["Count", "CountRow", "count"]

_MODULE_PRODUCTS = ("aten.convolution", "aten.addmm", "aten.mm")  # what a counter of layers sees


@dataclass(frozen=True)
class CountRow:
    """One part of a model."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Count:
    """The costs of one forward pass of one image."""

    parameters: int  # elements of all parameters
    macs: int  # multiply-adds of all convolutions and matrix products
    activations: int  # elements written by convolutions and linear layers
    rows: tuple[CountRow, ...]  # stem, stages, head: the top level, stages one by one


def count(model: nn.Module, input_size: Size | None = None, style: Literal["full", "published"] = "full") -> Count:
    """Count what `model` holds and does for one image.

    The arithmetic is followed operator by operator on shapes alone, so nothing is computed and a large model or image
    costs nothing. Norms, activations and other elementwise work are not multiply-adds. What stands under several names
    is held once and counted as often as it runs; other people's hooks are not called.

    Args:
        model: any model of images; it is left as it is.
        input_size: a side, (height, width) or (channels, height, width); by default what the model's weights expect.
        style: "full" counts every product, those inside attention and custom kernels included. "published" counts what
            most papers print: convolutions and linear layers only. Like the counters in use (thop), it passes over a
            module with a kernel of its own: its products, and the parameters that are not its children's.

    Raises:
        ValueError: for another style, or an input the model does not take.
    """
    if style not in ("full", "published"):
        raise ValueError(f"style {style!r} is unknown; choose full or published")
    size = input_shape(model, input_size)
    # torch's counter stumbles over a parameter that a module returns as it is
    meta = probe(model).requires_grad_(False)
    shapes: dict[str, tuple[int, ...]] = {}
    activations = 0
    kernel_macs: dict[str, int] = {}

    def record(name: str, is_layer: bool, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal activations
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape)
            activations += output.numel() if is_layer else 0

    def record_kernel(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        kernel_macs[name] = kernel_macs.get(name, 0) + module.kernel_macs(inputs, output)

    parts = _parts(meta)
    kernels = {name: module for name, module in meta.named_modules() if hasattr(module, "kernel_macs")}
    for name, module in kernels.items():
        module.register_forward_hook(partial(record_kernel, name))
    for name, module in meta.named_modules():
        is_layer = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        if is_layer or name in parts:
            module.register_forward_hook(partial(record, name, is_layer))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(torch.empty(1, *size, device="meta", dtype=_dtype(model)))

    macs_of = {name: _macs(ops, style) for name, ops in counter.get_flop_counts().items()}
    root = type(meta).__name__
    # What is added to the counter's figures: a kernel's own, for what the counter saw of it.
    added = {
        name: (kernel_macs.get(name, 0) if style == "full" else 0) - _own_macs(module, f"{root}.{name}", macs_of)
        for name, module in kernels.items()
    }
    if style == "published":
        for module in kernels.values():
            module._parameters.clear()
    rows = tuple(
        CountRow(
            name,
            shapes.get(name, ()),
            _parameters(module),
            macs_of.get(f"{root}.{name}", 0) + _macs_inside(name, added),
        )
        for name, module in parts.items()
    )
    return Count(_parameters(meta), macs_of.get("Global", 0) + sum(added.values()), activations, rows)


def _macs(flops_of_ops: dict[Any, int], style: str) -> int:
    return sum(flops for op, flops in flops_of_ops.items() if style == "full" or str(op) in _MODULE_PRODUCTS) // 2


def _macs_inside(part: str, macs_of: dict[str, int]) -> int:
    return sum(macs for name, macs in macs_of.items() if name == part or name.startswith(f"{part}."))


def _own_macs(module: nn.Module, path: str, macs_of: dict[str, int]) -> int:
    inside = sum(macs_of.get(f"{path}.{child}", 0) for child, _ in module.named_children())
    return macs_of.get(path, 0) - inside


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The children of a model, what holds the pyramid's stages split; those that hold nothing are left out."""
    levels = [info["module"] for info in getattr(model, "feature_info", [])]
    parts: dict[str, nn.Module] = {}

    def split(holder: nn.Module, prefix: str, least: int) -> None:
        for name, child in holder.named_children():
            place = f"{prefix}{name}"
            if sum(level.startswith(f"{place}.") for level in levels) >= least:
                split(child, f"{place}.", 2)
            else:
                parts[place] = child

    split(model, "", 1)
    return {name: part for name, part in parts.items() if _parameters(part)}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
