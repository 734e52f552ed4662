"""ExecuTorch (`.pte`) for phones and small devices, lowered to XNNPACK's kernels (extra `mobile`).

XNNPACK takes what it has kernels for; ExecuTorch's portable kernels run the rest, on one thread, unoptimised.
`operators` tells the two apart. A program is for one batch size and one image size: what XNNPACK hands back to the
portable kernels has a fixed size in ExecuTorch 1.5, and other inputs fail.
"""

import re
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.graph_form import graph_form
from convattn.deploy.muted import muted
from convattn.deploy.runtimes import trailer
from convattn.deploy.runtimes.decompositions import decompositions
from convattn.deploy.runtimes.low_rank import LowRank
from convattn.deploy.runtimes.runtime import CannotRunHere, OpenedFile, Precision, Request, UnreadableFile
from convattn.deploy.suffixes import SUFFIXES
from convattn.extras import require

SUFFIX = SUFFIXES["executorch"]
LIBRARIES: tuple[str, ...] = ("executorch",)
PRECISIONS: tuple[Precision, ...] = ("fp32",)
DYNAMIC: tuple[Dynamic, ...] = ("none",)

_MOST_DIMENSIONS = 6  # of a tensor in XNNPACK; lowering takes more and running fails

form = graph_form
digest, read_metadata, write_metadata = trailer.digest, trailer.read_metadata, trailer.write_metadata


def write(model: nn.Module, request: Request, path: Path) -> None:
    """Write `model` as an ExecuTorch program with one method, `forward`."""
    exir = _executorch("executorch.exir")
    xnnpack = _executorch("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    model = form(model).to(memory_format=torch.contiguous_format)  # XNNPACK arranges weights itself
    with muted():
        program = torch.export.export(model, (request.images,))
        _drop_layouts(program)
        low_rank = LowRank(program.run_decompositions(decompositions()), _MOST_DIMENSIONS)
        program = torch.export.export(low_rank, (request.images,)).run_decompositions(decompositions())
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        path.write_bytes(bytes(lowered.to_executorch().buffer))


def open_file(path: Path) -> OpenedFile:
    """The program in ExecuTorch's runtime on this CPU.

    Raises:
        CannotRunHere: if this build of ExecuTorch has no XNNPACK.
        UnreadableFile: if it is no program, or cut short.
    """
    runtime = _executorch("executorch.runtime").Runtime.get()
    if not runtime.backend_registry.is_available("XnnpackBackend"):
        raise CannotRunHere(f"{path} needs XNNPACK, which this build of ExecuTorch lacks; install it from its wheels")
    try:
        method = runtime.load_program(path).load_method("forward")
    except (RuntimeError, ValueError) as error:
        raise UnreadableFile(f"{path}: is no ExecuTorch program, or damaged or cut short ({error})") from None

    one_at_a_time = threading.Lock()  # the method writes each run's outputs into the same memory

    def run(images: Tensor) -> list[Tensor]:
        with one_at_a_time:
            return [output.clone() for output in method.execute([images.contiguous()])]

    return run


def operators(path: Path) -> dict[str, int]:
    """The operators of the program: XNNPACK's as `xnnpack.…`, the portable kernels' as `aten::…`."""
    program = _executorch("executorch.exir._serialize._program").deserialize_pte_binary(
        trailer.without_trailer(path.read_bytes())
    )
    plan = program.program.execution_plan[0]
    counts: Counter[str] = Counter()
    for instruction in (line.instr_args for chain in plan.chains for line in chain.instructions):
        if hasattr(instruction, "delegate_index"):
            place = plan.delegates[instruction.delegate_index].processed.index
            counts.update(_delegated(program.program.backend_delegate_data[place].data))
        elif hasattr(instruction, "op_index"):
            counts[plan.operators[instruction.op_index].name] += 1
    return dict(sorted(counts.items()))


def _executorch(module: str) -> Any:
    with muted():
        return require(module, "mobile")


def _drop_layouts(program: ExportedProgram) -> None:
    """Take channels-last copies out: XNNPACK lays out maps itself, and fails on permuted views of such copies."""
    for node in program.graph.nodes:
        if node.kwargs.get("memory_format") is torch.channels_last:
            node.kwargs = {**node.kwargs, "memory_format": torch.contiguous_format}


def _delegated(payload: bytes) -> list[str]:
    """The operators in one of XNNPACK's graphs: `XNNConv2d` is `xnnpack.Conv2d`."""
    serialize = _executorch("executorch.backends.xnnpack.serialization.xnnpack_graph_serialize")
    flatbuffer = _executorch("executorch.exir._serialize._flatbuffer")
    header = serialize.XNNHeader.from_bytes(payload[: serialize.XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as folder:
        schema, graph = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(serialize._get_schema_bytes())
        graph.write_bytes(payload[header.flatbuffer_offset :][: header.flatbuffer_size])
        flatbuffer._flatc_decompile(folder, str(schema), str(graph), ["--raw-binary"])
        text = Path(folder, "graph.json").read_text()  # not quite JSON: it says inf
    return [f"xnnpack.{name}" for name in re.findall(r'"xnode_union_type": "XNN(\w+)"', text)]
