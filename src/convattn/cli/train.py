"""`convattn train`: run a recipe, with any field of it changed, or go on with a run that was stopped."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from convattn.backbones.registry import nearest
from convattn.cli.arguments import UsageError, parse
from convattn.cli.console import console, say
from convattn.recipes import RECIPES
from convattn.report.run import write_run_report
from convattn.training.config import ConfigError, RunConfig
from convattn.training.config_json import config_to_json
from convattn.training.loop import Interrupted, train
from convattn.training.output import check_output, stored_config
from convattn.training.places import (
    WITHHELD,
    check_stored_options,
    field_of,
    stored_calls,
    with_absolute_paths,
    with_field,
)
from convattn.training.probe import Probe, probe
from convattn.training.processes import end_processes, is_main_process
from convattn.training.skipped import replay_skipped

__all__ = ["command"]

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


@dataclass(frozen=True)
class Options:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = DEFAULT_RECIPE
    """Name of a recipe; --list shows them."""
    data: str | None = None
    """Short for --data.source: folder with train/CLASS/IMAGE and val/CLASS/IMAGE, or `digits`."""
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


def command(args: Sequence[str]) -> int:
    """Run `convattn train` with these arguments; returns the exit status, 128 + its number after a signal."""
    options = _parse(args)
    if options.json and not (options.list or options.dry_run):
        raise UsageError("--json goes with --list or --dry-run; log.jsonl in the run folder has every epoch as JSON")
    if options.list:
        _print_recipes(options.json)
        return 0
    if options.replay is not None:
        for line in replay_skipped(options.replay):
            say(line)
        return 0
    config = _config(options)
    status = _dry_run(config, options) if options.dry_run else _train(config, options)
    end_processes()
    return status


def _train(config: RunConfig, options: Options) -> int:
    try:
        folder = train(config, resume=options.resume is not None, on_epoch=write_run_report)
    except Interrupted as stop:  # it has said how to go on
        return 128 + stop.signal
    if is_main_process():
        say(str(folder))
    return 0


def _dry_run(config: RunConfig, options: Options) -> int:
    check_output(with_absolute_paths(config), resume=options.resume is not None)
    found = probe(config)
    if is_main_process():
        _print_probe(config, found, options.json)
    return 0


def _parse(args: Sequence[str]) -> Options:
    """Parse with the named recipe's fields as the defaults, or those of the run to resume.

    The name may stand anywhere, so it is looked for first.
    """
    stored = _folder_to_resume(args)
    if stored is not None:
        run = stored_config(stored)
        config = replace(run, output=replace(run.output, folder=str(stored)))
        check_stored_options(config, str(stored))
        calls = stored_calls(config)
        for name in calls:
            config = with_field(config, name, WITHHELD)
        options = _parse_for(args, Options(config=config))
        for name, value in calls.items():
            if field_of(_config(options), name) == WITHHELD:
                raise ConfigError(
                    f"{stored}: its {name} would run or fetch {value!r}; if you trust it, give it again: "
                    f"--{name.replace('_', '-')} {shlex.quote(value)}"
                )
        if options.recipe != DEFAULT_RECIPE or options.output is not None:
            raise UsageError(f"--resume {stored} takes neither a recipe nor --output: the run has its own")
        return options
    first = args[0] if args and not args[0].startswith("-") else DEFAULT_RECIPE
    options = _parse_for(args, _defaults(first))
    return options if options.recipe == first else _parse_for(args, _defaults(options.recipe))


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
    return Options(recipe=recipe, config=RECIPES[recipe]())


def _parse_for(args: Sequence[str], default: Options) -> Options:
    options = parse(Options, args, command="train", description=_DESCRIPTION, default=default)
    given, before = options.config, default.config
    for short, long, value, usual in (
        (options.data, "data.source", given.data.source, before.data.source),
        (options.output, "output.folder", given.output.folder, before.output.folder),
    ):
        if short is not None and value not in (usual, str(short)):
            raise UsageError(f"--{long} {value} and --{long.partition('.')[0]} {short} are the same option; give one")
    return options


def _config(options: Options) -> RunConfig:
    config = options.config
    if options.data is not None:
        config = replace(config, data=replace(config.data, source=options.data))
    if options.output is not None:
        config = replace(config, output=replace(config.output, folder=str(options.output)))
    return config


def _print_recipes(as_json: bool) -> None:
    lines = {name: (recipe.__doc__ or "").splitlines()[0] for name, recipe in RECIPES.items()}
    if as_json:
        print(json.dumps(lines, indent=2))
        return
    table = Table("recipe", "what it is", box=None)
    for row in lines.items():
        table.add_row(*row)
    console().print(table)


def _print_probe(config: RunConfig, found: Probe, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"config": asdict(config), **asdict(found), "hours": found.hours}))
        return
    print(config_to_json(config), end="")
    print(f"parameters         {found.parameters:,}")
    print(f"images an epoch    {found.images:,}, {found.updates_per_epoch:,} updates")
    print(
        f"speed              {found.images_per_second:,.1f} images/s, after {found.epochs} epochs {found.hours:,.2f} h"
    )
    print(f"memory             {found.memory / 2**30:.2f} GiB at the peak, in each process that trains")
    print(f"disk               {found.disk / 2**30:.2f} GiB at the peak")
    if found.problems:
        print(f"not finite         {found.problems} of the updates tried: loss or gradient; lower optimizer.lr")
