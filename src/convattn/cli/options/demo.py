"""What `convattn demo` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.cli.arguments import UsageError, check_at_least, parse

__all__ = ["Options", "read"]

_DESCRIPTION = """Train a small hybrid on real handwritten digits, and show everything that comes after.

Trains smt_nano on scikit-learn's 1,797 digits, and a plain CNN of equal cost by the same recipe; evaluates both on
held-out images, shows where the hybrid looks, fuses it, exports it to ONNX, compares the numbers, measures the speed
and writes a report. About a minute and a half on two cores; no network.

Examples:
    convattn demo
    convattn demo --output /tmp/demo --epochs 3
    convattn demo --json
"""


@dataclass(frozen=True)
class Options:
    output: Path = Path("demo")
    """Folder for the report, the exported model and the run; one that an earlier demo wrote is replaced."""
    seed: int = 0
    """Of the weights, the order and the augmentation."""
    epochs: int | None = None
    """Passes over the training images; the recipe's number by default."""
    json: bool = False
    """Print the results as one JSON object instead of sentences."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="demo", description=_DESCRIPTION)
    check_at_least(1, options, "epochs")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed {options.seed} must be between 0 and {2**32 - 1}")
    return options
