"""PyTorch's own exported program (`.pt2`), run by PyTorch."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic, dynamic_shapes

__all__ = ["open_file", "write"]


def write(model: nn.Module, images: Tensor, dynamic: Dynamic, path: Path) -> None:
    """Write `model` as an `ExportedProgram`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.export.export(model, (images,), dynamic_shapes=dynamic_shapes(dynamic))
        torch.export.save(program, path)


def open_file(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """The program as a function."""
    module = torch.export.load(path).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            outputs = module(images)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run
