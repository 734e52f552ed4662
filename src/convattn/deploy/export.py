"""Export with proof: a file is kept only if a runtime reads it back and gives the model's own numbers."""

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.formats import FORMATS, format_of
from convattn.deploy.fuse import fuse
from convattn.deploy.runtimes.runtime import Request

__all__ = ["ExportError", "ExportReport", "ParityCheck", "export"]


class ExportError(RuntimeError):
    """The exported file does not give the model's numbers; it was not kept."""


@dataclass(frozen=True)
class ParityCheck:
    """One comparison of the exported file with the eager model."""

    input_shape: tuple[int, ...]
    relative_error: float  # max |exported - eager| / max |eager|, the worst over the outputs


@dataclass(frozen=True)
class ExportReport:
    """What was exported and how well it agrees."""

    path: str
    format: str
    dynamic: Dynamic
    tolerance: float
    checks: tuple[ParityCheck, ...]
    fused_parts: int  # modules that were exported in their inference form
    file_mib: float
    seconds: float

    @property
    def max_relative_error(self) -> float:
        return max(check.relative_error for check in self.checks)

    def to_json(self) -> str:
        """All fields and the largest error as a JSON object."""
        return json.dumps(dataclasses.asdict(self) | {"max_relative_error": self.max_relative_error}, indent=2)


def export(
    model: nn.Module,
    path: str | Path,
    format: str | None = None,
    *,
    input_size: tuple[int, int] | None = None,
    dynamic: Dynamic = "batch",
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write the inference form of `model` to a file, read it back with its runtime and compare the numbers.

    The file appears under its name only after every comparison passed; an older file there stays until then.

    Args:
        model: a classifier, or a `features_only` model (one output per level); it is left as it is.
        path: where to; an existing file is replaced.
        format: "onnx" or "torch_export"; by default from the suffix (.onnx, .pt2).
        input_size: (height, width) to trace and check at; by default what the weights expect. A model that does not say
            how many channels it takes is given 3.
        dynamic: what may differ when the file is used: "none", the "batch" size, or "all" (batch, height and width).
            Every freedom granted is checked at other values too.
        tolerance: largest relative error that counts as agreement, above 0.

    Raises:
        ValueError: for an unknown format or option.
        ExportError: if the exported file disagrees. Nothing is left behind.
        MissingExtra: if the runtime is not installed.
    """
    started = time.perf_counter()
    path = Path(path)
    format = format_of(path, format)
    if dynamic not in ("none", "batch", "all"):
        raise ValueError(f"dynamic {dynamic!r} is unknown; choose none, batch or all")
    if tolerance <= 0:
        raise ValueError(f"tolerance {tolerance} must be above 0")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file")
    channels, height, width = _input_shape(model, input_size)
    model = deepcopy(model).eval().cpu()  # where the runtimes are compared
    _check_precision(model)
    runtime = FORMATS[format]
    fused = fuse(model)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        unproven = Path(folder) / path.name
        runtime.write(fused, Request(_images((2, channels, height, width), seed=0), dynamic), unproven)
        checks = _compare(model, runtime.open_file(unproven), _shapes(dynamic, channels, height, width))
        worst = max(checks, key=lambda check: check.relative_error)
        if not worst.relative_error <= tolerance:
            raise ExportError(
                f"{path}: the exported model differs from the eager one by {worst.relative_error:.2e} (relative) "
                f"at input {worst.input_shape}, more than the tolerance {tolerance:.0e}; the file was not kept"
            )
        size = unproven.stat().st_size
        os.replace(unproven, path)
    return ExportReport(
        path=str(path),
        format=format,
        dynamic=dynamic,
        tolerance=tolerance,
        checks=tuple(checks),
        fused_parts=len(fused.fusion_report),  # type: ignore[arg-type]
        file_mib=size / 2**20,
        seconds=time.perf_counter() - started,
    )


def _input_shape(model: nn.Module, input_size: tuple[int, int] | None) -> tuple[int, int, int]:
    expected: Any = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if expected is None and input_size is None:
        raise ValueError(f"{type(model).__name__} does not say what input it expects; give input_size=(height, width)")
    channels, *size = expected or (3, 0, 0)
    height, width = input_size or size
    return getattr(model, "in_chans", channels), height, width


def _check_precision(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype is not torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}; export takes a float32 model: export(model.float(), ...)")


def _shapes(dynamic: Dynamic, channels: int, height: int, width: int) -> list[tuple[int, ...]]:
    """The input shapes to check at: the traced one twice, and others where the file promises to take them."""
    shapes: list[tuple[int, ...]] = [(2, channels, height, width)] * 2
    if dynamic != "none":
        shapes += [(1, channels, height, width), (3, channels, height, width)]
    if dynamic == "all":
        shapes += [(1, channels, height + 32, width), (1, channels, height + 5, width + 17)]
    return shapes


def _compare(
    model: nn.Module, exported: Callable[[Tensor], list[Tensor]], shapes: list[tuple[int, ...]]
) -> list[ParityCheck]:
    checks = []
    for seed, shape in enumerate(shapes, start=1):
        images = _images(shape, seed)
        with torch.inference_mode():
            want = model(images)
        got = exported(images)
        errors = [_relative_error(g, w) for g, w in zip(got, [want] if isinstance(want, Tensor) else want, strict=True)]
        checks.append(ParityCheck(shape, max(errors)))
    return checks


def _relative_error(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        return float("inf")
    error = ((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30)).item()
    return error if error == error else float("inf")  # NaN never agrees


def _images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
