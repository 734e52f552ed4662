"""`convattn train`: run a recipe, with any field of it changed, or go on with a run that was stopped."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from convattn.backbones.registry import nearest
from convattn.cli.arguments import UsageError, parse
from convattn.recipes import RECIPES
from convattn.training.config import ConfigError, RunConfig
from convattn.training.config_json import config_from_json
from convattn.training.loop import Interrupted, train

__all__ = ["command"]

DEFAULT_RECIPE = "smt_nano_small_images"

_DESCRIPTION = """Train a model by a recipe, any field of which can be set; defaults shown are those of the recipe.

Examples:
    convattn train --data pictures --output runs/pictures
    convattn train smt_nano_digits --output runs/digits --schedule.epochs 5
    convattn train --resume runs/pictures
    convattn train --list
"""


@dataclass(frozen=True)
class Options:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = DEFAULT_RECIPE
    """Name of a recipe; --list shows them."""
    data: str | None = None
    """Folder with train/CLASS/IMAGE and val/CLASS/IMAGE (or test/…), or `digits`; short for --data.source."""
    output: Path | None = None
    """Folder for everything the run writes, empty or new; short for --output.folder."""
    resume: Path | None = None
    """Go on with the run in this folder; everything else is as it was started."""
    list: bool = False
    """List the recipes and stop."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def command(args: list[str]) -> int:
    """Run `convattn train` with these arguments; returns the exit status, 130 after Ctrl-C."""
    options = _parse(args)
    if options.list:
        _print_recipes()
        return 0
    config = _config(options) if options.resume is None else _stored_config(options, args)
    try:
        folder = train(config, resume=options.resume is not None)
    except Interrupted:  # it has said how to go on
        return 130
    print(folder)
    return 0


def _parse(args: list[str]) -> Options:
    """Parse with the named recipe's fields as the defaults; the name may stand anywhere, so it is looked for first."""
    first = args[0] if args and not args[0].startswith("-") else DEFAULT_RECIPE
    options = _parse_for(first, args)
    return options if options.recipe == first else _parse_for(options.recipe, args)


def _parse_for(recipe: str, args: list[str]) -> Options:
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}; {nearest(recipe, RECIPES)}")
    default = Options(recipe=recipe, config=RECIPES[recipe]())
    return parse(Options, args, command="train", description=_DESCRIPTION, default=default)


def _config(options: Options) -> RunConfig:
    config = options.config
    if options.data is not None:
        config = replace(config, data=replace(config.data, source=options.data))
    if options.output is not None:
        config = replace(config, output=replace(config.output, folder=str(options.output)))
    return config


def _stored_config(options: Options, args: list[str]) -> RunConfig:
    folder = options.resume
    assert folder is not None
    if len(args) > len(["--resume", "DIR"]):
        raise UsageError(f"--resume {folder} takes nothing else: a run goes on as it was started")
    stored = folder / "config.json"
    if not stored.is_file():
        raise ConfigError(f"{folder}: no run to resume here; it holds no config.json")
    config = config_from_json(stored.read_text())
    return replace(config, output=replace(config.output, folder=str(folder)))


def _print_recipes() -> None:
    table = Table("recipe", "what it is", box=None)
    for name, recipe in RECIPES.items():
        table.add_row(name, (recipe.__doc__ or "").splitlines()[0])
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)
