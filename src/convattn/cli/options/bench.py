"""What `convattn bench` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convattn.cli.arguments import UsageError, check_at_least, parse

__all__ = ["Options", "read"]

_DESCRIPTION = """Time models side by side: latency, images/s, peak memory, and time per multiply-add over a reference.

Models that are named have random weights: speed does not depend on them. An exported file is timed as it is.
Accuracies are the authors' published figures. Runtimes: {runtimes}. What cannot be had is
named with the reason, and the rest is measured.

Examples:
    convattn bench smt_tiny nextvit_small
    convattn bench smt_tiny --against timm:swin_tiny_patch4_window7_224 --runtime eager,fused,onnxruntime --threads 2
    convattn bench smt_tiny cotnet_50 --precision fp32,bf16 --batch 1,8 --html bench.html
    convattn bench runs/photos photos.onnx smt_nano
    convattn bench groupmixformer_tiny --runtime prepacked --profile
    convattn bench groupmixformer_tiny resnet50_das --runtime fused --growth --json
"""


@dataclass(frozen=True)
class Options:
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME...")]
    """Models by name (`timm:NAME` for timm's), run folders, model files, exported files."""
    against: tuple[str, ...] = ()
    """More models beside them, which are not profiled."""
    runtime: str = "eager,fused,prepacked"
    """Ways to run each, with commas between them."""
    precision: str = "fp32"
    """fp32, bf16, fp16, int8, with commas."""
    batch: str | None = None
    """Images per call, with commas; 1, or with --growth 1,4,16,64."""
    size: str | None = None
    """Of the images, with commas: a side in pixels, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH. By default what the first
    file takes, 224 if all are names, or with --growth 224,384,512,768,1024."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where PyTorch's runtimes run."""
    threads: int | None = None
    """Of every runtime; by default as PyTorch sets them."""
    repeats: int | None = None
    """Timed calls of each; 30, or with --growth 7."""
    reference: str | None = "timm:resnet50"
    """The model that time per multiply-add is given over; measured too. `None` for none."""
    memory: bool = True
    """Measure peak memory, each row in a process of its own."""
    growth: bool = False
    """Every size at the first batch and every batch at the first size, with fitted exponents."""
    profile: bool = False
    """The ten dearest operations of each NAME, beside what the machine can do at best."""
    html: Path | None = None
    """Write a page with an interactive plot."""
    json: bool = False
    """Print JSON instead of tables."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="bench", description=_description)
    if not options.names:
        raise UsageError("missing NAME, a model; see convattn bench --help")
    check_at_least(1, options, "repeats")
    return options


def _description() -> str:
    from convattn.bench.runtimes import runtime_names  # with torch: who can run files is asked of those who do

    return _DESCRIPTION.format(runtimes=", ".join(runtime_names()))
