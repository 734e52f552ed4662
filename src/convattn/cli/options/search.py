"""What `convattn search` takes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convattn.cli.arguments import UsageError, parse, words_of
from convattn.cli.options.ablate import check_above_zero, check_hold_out, check_seeds

__all__ = ["Options", "limit_ms_of", "mixers_of", "read", "rungs_of_words"]

_DESCRIPTION = """Compose a network of any mixers within a measured latency, by successive halving, on your images.

Networks are drawn at random and timed before anything is trained; those above the latency are refused. The best are
trained again from scratch with paired seeds, beside the best of a random search of equal budget, a hand-made network
and the five families at this latency. What comes out: model.safetensors, model.json, results.json, report.html.

Examples:
    convattn search --data photos --latency 5ms --dry-run
    convattn search --data photos --latency 5ms --output searches/photos
    convattn search --data photos --latency 2ms --runtime openvino --mixers sam,cot,e_mhsa --networks 9 --rungs 1,3
"""

_LATENCY = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s?(us|ms|s)")
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Options:
    data: str | None = None
    """Where the images are, as `convattn train` takes them."""
    latency: str = ""
    """The most that one image may take: 5ms, 800us, 0.1s; the tenth percentile of 30 calls on this machine."""
    runtime: str = "fused"
    """Where: fused, prepacked, onnxruntime, openvino, …, by the names of `convattn bench`; all but eager run the
    inference form."""
    threads: int | None = None
    """Of the runtime; by default as PyTorch sets them."""
    output: Path | None = None
    """Folder of the study, all runs, the page and the results; `searches/…` by default."""
    mixers: str = "sam,gma,e_mhsa,mhca,cot,das,window_mhsa"
    """Blocks to compose of, with commas."""
    networks: int = 27
    """How many begin; a third of them goes on from each rung."""
    rungs: str = "1,3,9"
    """Epochs of each rung, with commas."""
    epochs: int | None = None
    """Of each run when the best are trained again; the recipe's by default."""
    seeds: int = 5
    """Runs of each of them, from seed 0; more can be added later in the same folder."""
    budgets: Literal["epochs", "epochs,time"] = "epochs"
    """How they are trained again: for equal epochs, and for equal time too."""
    recipe: str | None = None
    """The run that all share, by the names of `convattn train --list`; chosen by the images by default."""
    batch_size: int | None = None
    """Its batch."""
    image_size: int | None = None
    """Its side of images, pixels."""
    hold_out: float = 0.1
    """Share of the training images to choose by; those of the test or validation split choose nothing."""
    seed: int = 0
    """By which networks are drawn."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train; latency is measured on the CPU."""
    worth: float = 0.5
    """The smallest difference that matters, in the metric's unit."""
    dry_run: bool = False
    """Measure, show the runs and the time they take, and stop."""
    json: bool = False
    """Print one JSON object."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="search", description=_DESCRIPTION)
    if options.data is None:
        raise UsageError("missing --data, the folder of images")
    limit_ms_of(options)
    check_seeds(options.seeds)
    check_above_zero(options, ("networks", "epochs", "batch_size", "image_size", "worth"))
    check_hold_out(options.hold_out)
    rungs_of_words(options)
    mixers_of(options)
    return options


def limit_ms_of(options: Options) -> float:
    """The latency in milliseconds; raises UsageError for what is none."""
    if not options.latency:
        raise UsageError("missing --latency, such as 5ms")
    found = _LATENCY.fullmatch(options.latency.strip())
    if found is None or not float(found[1]):
        raise UsageError(
            f"--latency {options.latency!r} must be a time above 0 with its unit, such as 5ms, 800us or 0.1s"
        )
    return float(found[1]) * _MILLISECONDS[found[2]]


def rungs_of_words(options: Options) -> tuple[int, ...]:
    """The epochs of the rungs; raises UsageError for what is none."""
    try:
        return tuple(int(word) for word in words_of(options.rungs))
    except ValueError:
        raise UsageError(
            f"--rungs {options.rungs!r} must be whole numbers with commas between them, such as 1,3,9"
        ) from None


def mixers_of(options: Options) -> tuple[str, ...]:
    """The blocks, each once; raises UsageError for none."""
    found = tuple(dict.fromkeys(words_of(options.mixers)))
    if not found:
        raise UsageError(f"--mixers {options.mixers!r} names nothing; name some with commas between them")
    return found
