"""What `convattn models` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from convattn.cli.arguments import UsageError, parse
from convattn.cli.quantity import quantity
from convattn.size_option import SizeOption

__all__ = ["Limits", "Options", "is_pattern", "read"]

_DESCRIPTION = """List models, or describe one: a name, a run folder, a model file or an exported file.

Accuracies are the authors' published figures, with their source. Parameters and multiply-adds are counted. Nothing is
timed unless you ask for the order of latency.

Examples:
    convattn models
    convattn models "smt_*" --sort top1
    convattn models --max-params 15M --max-macs 4G --min-top1 82 --pretrained
    convattn models --max-params 25M --sort latency --runtime fused
    convattn models "timm:resnet*d" --sort params
    convattn models smt_tiny --image-size 384
    convattn models runs/photos
    convattn models photos.onnx --json
"""

_Number = tyro.conf.arg(metavar="NUMBER")


@dataclass(frozen=True)
class Limits:
    """What a model in the list is to have."""

    max_params: int | None = None
    max_macs: int | None = None
    min_top1: float | None = None
    pretrained: bool = False

    def __str__(self) -> str:
        words = [
            self.max_params and f"at most {self.max_params:,} parameters",
            self.max_macs and f"at most {self.max_macs:,} multiply-adds",
            self.min_top1 and f"a published top-1 accuracy of {self.min_top1:g} % or more",
            self.pretrained and "published weights",
        ]
        return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class Options:
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = "*"
    """A pattern (quote it) or a model's name, `timm:…` for timm's; a run folder, a model file or an exported file."""
    max_params: Annotated[str | None, _Number] = None
    """List those of at most so many parameters: 800K, 15M, 1.5G."""
    max_macs: Annotated[str | None, _Number] = None
    """List those of at most so many multiply-adds, for one image of the size that the weights expect: 4G."""
    min_top1: Annotated[float | None, tyro.conf.arg(metavar="PERCENT")] = None
    """List those of at least this published top-1 accuracy on ImageNet-1k."""
    pretrained: bool = False
    """List those with published weights. Those "by hand" come only through a browser."""
    sort: Literal["name", "top1", "params", "latency"] = "name"
    """What comes first: highest accuracy, fewest parameters, shortest time. Latency is timed here and now, briefly."""
    runtime: Annotated[str | None, tyro.conf.arg(metavar="RUNTIME")] = None
    """What `--sort latency` runs them in: eager unless given, fused, prepacked, compile, onnxruntime, openvino, …"""
    image_size: SizeOption = None
    """Count one model at this side, HEIGHT WIDTH or CHANNELS HEIGHT WIDTH in pixels; by default what its weights
    expect."""
    json: bool = False
    """Print JSON instead of a table."""

    @property
    def limits(self) -> Limits:
        """The limits as numbers; raises UsageError for what is none."""
        top1 = self.min_top1
        if top1 is not None and not 1 <= top1 <= 100:
            raise UsageError(f"min-top1 {top1:g} must be a percentage, 1 to 100, such as 82")
        most = _quantity("max-params", self.max_params), _quantity("max-macs", self.max_macs)
        return Limits(*most, min_top1=top1, pretrained=self.pretrained)

    @property
    def is_for_lists(self) -> bool:
        """Whether something is asked of many models."""
        return is_pattern(self.name) or self.limits != Limits() or self.sort != "name"


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="models", description=_DESCRIPTION)
    if not options.name:
        raise UsageError("the name is empty; give a pattern, a name or a file, or nothing for all models")
    if options.is_for_lists and options.image_size is not None:
        raise UsageError("--image-size counts one model; name one, or leave it out")
    if options.runtime is not None and options.sort != "latency":
        raise UsageError(f"--runtime {options.runtime} is what --sort latency times the models in; give both")
    return options


def is_pattern(name: str) -> bool:
    """Whether a name stands for several."""
    return any(mark in name for mark in "*?[")


def _quantity(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else quantity(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from None
