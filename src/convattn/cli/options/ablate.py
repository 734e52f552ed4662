"""What `convattn ablate` takes."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from convattn.cli.arguments import UsageError, parse, words_of

__all__ = [
    "Options",
    "budgets_of",
    "check_above_zero",
    "check_hold_out",
    "check_seeds",
    "controls_of",
    "factors_of",
    "key_and_values",
    "options_of",
    "read",
]

_DESCRIPTION = """Find out which design is worth it: the same recipe and images, paired seeds, controls, and intervals.

Examples:
    convattn ablate --list
    convattn ablate smt_components --base smt_nano --data photos --seeds 5
    convattn ablate --base timm:resnet18 --mixers none,se,cbam,cot,das --places stages --data photos --seeds 5
    convattn ablate --base smt_nano --vary "num_heads=1|2|4|8" --data photos --dry-run
"""

_BUDGETS = ("epochs", "time")
_CONTROLS = ("parameters", "latency", "placebo")


@dataclass(frozen=True)
class Options:
    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")] = ""
    """A table of a paper, by the names of `--list`; or name a base with --mixers or --vary."""
    data: str | None = None
    """Where the images are, as `convattn train` takes them; the task follows from their layout."""
    output: Path | None = None
    """Folder of all runs, the page and the results; several machines may share it. `ablations/…` by default."""
    seeds: int = 5
    """Runs of each design, from seed 0; more can be added later in the same folder."""
    base: str | None = None
    """Model that designs are held against (`timm:NAME` for timm's): the recipe's by default; of a preset, the
    network that its options are tried on instead."""
    base_options: tuple[str, ...] = ()
    """Its keywords, as KEY=VALUE."""
    mixers: str = ""
    """Blocks to try, with commas."""
    places: str = "stages"
    """Where, with commas: `stages`, `blocks`, a pattern of modules such as `*.bn3`; `conv3x3` or `replace:PATTERN` for
    convolutions that give way."""
    vary: str = ""
    """Or one option of the base at several values, as KEY=VALUE|VALUE."""
    recipe: str | None = None
    """The run that all share, by the names of `convattn train --list`; chosen by the images by default."""
    epochs: int | None = None
    """Its epochs."""
    batch_size: int | None = None
    """Its batch."""
    image_size: int | None = None
    """Its side of images, pixels."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train."""
    budgets: str = "epochs,time"
    """Both, or one: equal epochs, equal time."""
    minutes: float | None = None
    """Equal time for every design; by default what the base takes for its epochs."""
    controls: str = "parameters,latency,placebo"
    """Beside the designs: the base widened to equal parameters, to equal latency, and a design whose blocks learn
    nothing; `none` for none."""
    control_of: str | None = None
    """Design that they are made for; that with the most parameters by default."""
    tune: str = ""
    """Learning rates to try first for every design, as multiples of the recipe's, with commas, such as `0.5,1,2`; each
    keeps what is best on training images held out."""
    tune_decay: str = ""
    """Weight decays, likewise; every pair of both is tried."""
    hold_out: float | None = None
    """Share of the training images to choose by; those of the validation split then choose nothing."""
    choose: Literal["last", "best"] = "last"
    """The figure that counts: of the last epoch, or of the best on images held out."""
    worth: float = 0.5
    """The smallest difference that matters, in the metric's unit."""
    list: bool = False
    """List the presets."""
    dry_run: bool = False
    """Measure, show the runs and the time they take, and stop."""
    json: bool = False
    """Print one JSON object."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="ablate", description=_DESCRIPTION)
    if options.list:
        return options
    asked = [name for name in ("preset", "mixers", "vary") if getattr(options, name)]
    if len(asked) != 1:
        given = " and ".join(asked) or "none of them"
        raise UsageError(f"name a preset, or --mixers, or --vary; {given} was given; see convattn ablate --help")
    if options.data is None:
        raise UsageError("missing --data, the folder of images")
    check_seeds(options.seeds)
    check_above_zero(options, ("epochs", "batch_size", "image_size", "minutes", "worth"))
    check_hold_out(options.hold_out)
    if options.choose == "best" and options.hold_out is None:
        raise UsageError("--choose best needs --hold-out: the best epoch is never chosen on the images that judge it")
    budgets = budgets_of(options)
    if options.minutes is not None and "time" not in budgets:
        raise UsageError(f"--minutes has no effect on --budgets {options.budgets}; add time")
    controls_of(options)
    options_of(options)
    factors_of(options, "tune")
    factors_of(options, "tune_decay")
    if options.vary:
        key_and_values(options)
    return options


def check_seeds(seeds: int) -> None:
    """Raise UsageError for fewer than two."""
    if seeds < 2:
        raise UsageError(
            f"--seeds {seeds}: one run says nothing of the spread between runs; take 2 or more, 5 to begin with"
        )


def check_above_zero(options: Any, names: Sequence[str]) -> None:
    """Raise UsageError for a field of these that is set and not above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be above 0")


def check_hold_out(share: float | None) -> None:
    """Raise UsageError for what is no share."""
    if share is not None and not 0 < share < 1:
        raise UsageError(f"--hold-out {share} must be above 0 and below 1")


def budgets_of(options: Options) -> tuple[Literal["epochs", "time"], ...]:
    """The budgets that are named; raises UsageError for none, or another word."""
    return _some_of(options.budgets, "--budgets", _BUDGETS)


def controls_of(options: Options) -> tuple[str, ...]:
    """The controls that are named; raises UsageError for another word."""
    return () if options.controls == "none" else _some_of(options.controls, "--controls", _CONTROLS)


def factors_of(options: Options, name: Literal["tune", "tune_decay"]) -> tuple[float, ...]:
    """The multiples of the recipe's setting to try; raises UsageError for what is none."""
    text = getattr(options, name)
    try:
        found = tuple(dict.fromkeys(float(word) for word in words_of(text)))
    except ValueError:
        found = (0.0,)
    if not all(0 < factor < float("inf") for factor in found):
        option = f"--{name.replace('_', '-')}"
        raise UsageError(f"{option} {text!r} must be numbers above 0 with commas between them, such as 0.5,1,2")
    return found


def options_of(options: Options) -> dict[str, Any]:
    """The base's keywords; raises UsageError for what is no KEY=VALUE."""
    found = {}
    for word in options.base_options:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--base-options {word!r} must be KEY=VALUE")
        found[key] = _value(value)
    return found


def key_and_values(options: Options) -> tuple[str, list[Any]]:
    """What --vary says; raises UsageError if it says nothing."""
    key, _, values = options.vary.partition("=")
    found = [_value(value) for value in values.split("|") if value.strip()]
    if not key.isidentifier() or not found:
        raise UsageError(f"--vary {options.vary!r} must be KEY=VALUE|VALUE")
    return key, found


def _some_of(text: str, flag: str, known: tuple[str, ...]) -> Any:
    words = words_of(text)
    for word in words:
        if word not in known:
            raise UsageError(f"{flag} {word!r} is unknown; choose of {', '.join(known)}")
    if not words:
        raise UsageError(f"{flag} {text!r} names nothing; choose of {', '.join(known)}")
    return tuple(word for word in known if word in words)


def _value(text: str) -> Any:
    """A number, a tuple or another literal of Python; else the word itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
