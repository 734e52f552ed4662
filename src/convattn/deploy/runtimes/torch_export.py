"""PyTorch's own exported program (`.pt2`), run by PyTorch.

Opening such a file can run code of whoever wrote it (`pt2_archive`): open those of people you trust.
"""

from collections import Counter
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from convattn.deploy.dynamic import Dynamic, dynamic_shapes
from convattn.deploy.muted import muted
from convattn.deploy.runtimes import pt2_archive
from convattn.deploy.runtimes.cast import cast
from convattn.deploy.runtimes.pt2_archive import contents, one_line
from convattn.deploy.runtimes.runtime import OpenedFile, Precision, Request, UnreadableFile, as_list

SUFFIX = pt2_archive.SUFFIX
LIBRARIES: tuple[str, ...] = ()
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
DYNAMIC: tuple[Dynamic, ...] = ("none", "batch", "all")

digest, read_metadata, write_metadata = pt2_archive.digest, pt2_archive.read_metadata, pt2_archive.write_metadata


def form(model: nn.Module) -> nn.Module:
    """The inference form as it is."""
    return model


def write(model: nn.Module, request: Request, path: Path) -> None:
    """Write `model` as an `ExportedProgram`; in bf16 its weights are stored in bfloat16."""
    model = cast(model, request.precision)
    with muted():
        program = torch.export.export(model, (request.images,), dynamic_shapes=dynamic_shapes(request.dynamic))
        archive = BytesIO()  # on a full disk PyTorch's own file writer ends the process
        torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())


def open_file(path: Path) -> OpenedFile:
    """The program as a function.

    Raises:
        UnreadableFile: if the file is missing, damaged, an AOTInductor package, or of another version of PyTorch.
    """
    module = _program(path).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():  # what is behind the file may learn
            return as_list(module(images))

    return run


def operators(path: Path) -> dict[str, int]:
    """The operators that the program calls."""
    graph = _program(path).graph
    return dict(sorted(Counter(str(node.target) for node in graph.nodes if node.op == "call_function").items()))


def _program(path: Path) -> ExportedProgram:
    if contents(path) != "torch_export":
        raise UnreadableFile(f"{path}: is an AOTInductor package, not an exported program")
    try:
        with muted():  # PyTorch logs a traceback and goes on to the layout of older files
            return torch.export.load(path)
    except Exception as error:  # whatever PyTorch makes of contents that it does not understand
        raise UnreadableFile(
            f"{path}: PyTorch {torch.__version__} cannot read its program ({one_line(error)}); export it again"
        ) from None
