"""What `convattn train` takes: a recipe or a run, and every field of its configuration."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from convattn.cli.arguments import UsageError, parse
from convattn.cli.console import warn
from convattn.nearest import nearest
from convattn.recipes import RECIPES
from convattn.task import ConfigError
from convattn.training.config import RunConfig

__all__ = ["Options", "read", "run_config"]

DEFAULT_RECIPE = "smt_nano_small_images"

_DESCRIPTION = """Train a model by a recipe, any field of which can be set; defaults shown are those of the recipe.

Examples:
    convattn train --data pictures --output runs/pictures
    convattn train finetune --model.name nextvit_small --model.pretrained --data pictures --output runs/mine
    convattn train smt_tiny_imagenet --data imagenet --dry-run
    convattn train --resume runs/pictures
    convattn train --list
    torchrun --nproc-per-node 8 -m convattn train smt_tiny_imagenet --data imagenet --output runs/smt
"""
_COMMON = (
    "--data",
    "--output",
    "--resume",
    "--list",
    "--dry-run",
    "--model.name",
    "--model.pretrained",
    "--data.batch-size",
    "--schedule.epochs",
    "--optimizer.lr",
)


@dataclass(frozen=True)
class Options:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = DEFAULT_RECIPE
    """Name of a recipe; --list shows them."""
    data: str | None = None
    """Short for --data.source: folder of images in a layout of the data page, or `digits`."""
    output: Path | None = None
    """Short for --output.folder: folder for everything the run writes, empty or new."""
    resume: Path | None = None
    """Go on with the run in this folder, as it was started; see the training page for the fields that may change."""
    dry_run: bool = False
    """Try a few updates, print the configuration and what the run would take, and stop; nothing is left behind."""
    replay: Path | None = None
    """Run a skipped update again from its file, say where it first is not finite, and stop."""
    list: bool = False
    """List the recipes and stop."""
    json: bool = False
    """With --list or --dry-run: print JSON."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    stored = _folder_to_resume(args)
    options = _of_recipe(args) if stored is None else _of_run(args, stored)
    if options.json and not (options.list or options.dry_run):
        raise UsageError("--json goes with --list or --dry-run; log.jsonl in the run folder has every epoch as JSON")
    return options


def run_config(options: Options) -> RunConfig:
    """The configuration, with the options that have a short name."""
    config = options.config
    if options.data is not None:
        config = replace(config, data=replace(config.data, source=options.data))
    if options.output is not None:
        config = replace(config, output=replace(config.output, folder=str(options.output)))
    return config


def _of_recipe(args: Sequence[str]) -> Options:
    """With the named recipe's fields as the defaults; the name may stand anywhere, so it is looked for first."""
    first = args[0] if args and not args[0].startswith("-") else DEFAULT_RECIPE
    options = _parse_for(args, _defaults(first))
    return options if options.recipe == first else _parse_for(args, _defaults(options.recipe))


def _of_run(args: Sequence[str], stored: Path) -> Options:
    """With the fields of the run to resume as the defaults."""
    from convattn.training.output import stored_config
    from convattn.training.places import WITHHELD, check_stored_options, field_of, stored_calls, with_field

    run = stored_config(stored)
    config = replace(run, output=replace(run.output, folder=str(stored)))
    check_stored_options(config, str(stored))
    calls = stored_calls(config)
    for name in calls:
        config = with_field(config, name, WITHHELD)
    options = _parse_for(args, Options(config=config))
    for name, value in calls.items():
        if field_of(run_config(options), name) == WITHHELD:
            raise ConfigError(
                f"{stored}: its {name} would run or fetch {value!r}; if you trust it, give it again: "
                f"--{name.replace('_', '-')} {shlex.quote(value)}"
            )
    if options.recipe != DEFAULT_RECIPE or options.output is not None:
        raise UsageError(f"--resume {stored} takes neither a recipe nor --output: the run has its own")
    return options


def _folder_to_resume(args: Sequence[str]) -> Path | None:
    for at, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name == "--resume":
            value = value if equals else next(iter(args[at + 1 :]), "")
            return Path(value) if value else None
    return None


def _defaults(recipe: str) -> Options:
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}; {nearest(recipe, RECIPES)}")
    return Options(recipe=recipe, config=replace(RECIPES[recipe](), recipe=recipe))


def _with_moved(args: Sequence[str], config: RunConfig) -> list[str]:
    """Options of earlier versions under their names of now, with a line about each."""
    moved = {f"--{old}".replace("_", "-"): f"--task.{new}".replace("_", "-") for old, new in config.task.moved.items()}
    words = []
    for word in args:
        flag, equals, _ = word.replace("_", "-").partition("=") if word.startswith("--") else (word, "", "")
        old = next((name for name in moved if flag == name or flag.startswith(f"{name}.")), None)
        if old is not None:
            new = moved[old] + flag[len(old) :]
            warn(f"{flag} is called {new} now")
            word = f"{new}{equals}{word.partition('=')[2]}"
        words.append(word)
    return words


def _parse_for(args: Sequence[str], default: Options) -> Options:
    args = _with_moved(args, default.config)
    options = parse(Options, args, command="train", description=_DESCRIPTION, default=default, common=_COMMON)
    given, before = options.config, default.config
    for short, long, value, usual in (
        (options.data, "data.source", given.data.source, before.data.source),
        (options.output, "output.folder", given.output.folder, before.output.folder),
    ):
        if short is not None and value not in (usual, str(short)):
            raise UsageError(f"--{long} {value} and --{long.partition('.')[0]} {short} are the same option; give one")
    return options
