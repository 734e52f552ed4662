"""ONNX, run by ONNX Runtime (extra `onnx`)."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic, dynamic_shapes
from convattn.extras import require

__all__ = ["OPSET", "open_file", "write"]

OPSET = 20  # the first with GELU as one operator


def write(model: nn.Module, images: Tensor, dynamic: Dynamic, path: Path) -> None:
    """Write `model` as one ONNX file of opset 20, input `images`, outputs `output` or `level_0`, `level_1`, …"""
    for module in ("onnx", "onnxscript"):
        require(module, "onnx")
    with torch.inference_mode():
        outputs = model(images)
    names = ["output"] if isinstance(outputs, Tensor) else [f"level_{index}" for index in range(len(outputs))]
    # The exporter reports progress on standard output and warns about its own internals.
    with warnings.catch_warnings(), redirect_stdout(StringIO()), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images,),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            dynamic_shapes=dynamic_shapes(dynamic),
            external_data=False,
            verbose=False,
        )


def open_file(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """An ONNX Runtime session on the CPU, with as many threads as PyTorch uses."""
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]

    return run


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Loggers of these names say nothing below errors inside the block."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
