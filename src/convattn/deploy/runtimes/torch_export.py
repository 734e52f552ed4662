"""PyTorch's own exported program (`.pt2`), run by PyTorch."""

import hashlib
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic, dynamic_shapes
from convattn.deploy.runtimes.runtime import Precision, Request, Run

__all__ = [
    "DYNAMIC",
    "PRECISIONS",
    "SUFFIX",
    "digest",
    "open_file",
    "operators",
    "read_metadata",
    "write",
    "write_metadata",
]

SUFFIX = ".pt2"
PRECISIONS: tuple[Precision, ...] = ("fp32",)
DYNAMIC: tuple[Dynamic, ...] = ("none", "batch", "all")

_ENTRY = "extra/convattn.json"


def write(model: nn.Module, request: Request, path: Path) -> None:
    """Write `model` as an `ExportedProgram`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.export.export(model, (request.images,), dynamic_shapes=dynamic_shapes(request.dynamic))
        torch.export.save(program, path)


def open_file(path: Path) -> Run:
    """The program as a function."""
    module = torch.export.load(path).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            outputs = module(images)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


def operators(path: Path) -> dict[str, int]:
    """The operators that the program calls."""
    graph = torch.export.load(path).graph
    return dict(sorted(Counter(str(node.target) for node in graph.nodes if node.op == "call_function").items()))


def write_metadata(path: Path, text: str) -> None:
    """Put `text` among the archive's extra files; to be done once."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/{_ENTRY}", text)


def read_metadata(path: Path) -> str | None:
    """What stands among the archive's extra files."""
    with zipfile.ZipFile(path) as archive:
        entry = next((name for name in archive.namelist() if name.endswith(_ENTRY)), None)
        return archive.read(entry).decode() if entry else None


def digest(path: Path) -> str:
    """SHA-256 of all other entries of the archive, each behind its name."""
    total = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(_ENTRY):
                total.update(name.encode() + b"\0" + archive.read(name))
    return total.hexdigest()
