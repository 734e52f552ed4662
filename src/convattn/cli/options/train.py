"""What `convattn train` takes: a recipe or a run, and every field of its configuration."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from convattn.cli.arguments import UsageError, parse
from convattn.cli.choices import SMALL_IMAGES, choose_recipe, recipe_of_data, tell, value_of, with_scaled_warmup
from convattn.cli.console import warn
from convattn.cli.help import HELP_WORDS
from convattn.config_errors import RunFolderError
from convattn.nearest import nearest
from convattn.recipes import RECIPES
from convattn.training.config import RunConfig, ScheduleConfig

__all__ = ["AUTO", "Options", "for_images", "read", "run_config"]

AUTO = "auto"  # the recipe is chosen by the images

_DESCRIPTION = """Train a model by a recipe, any field of which can be set; defaults shown are those of the recipe.
Without one the images are looked at: small ones get smt_nano_small_images, photographs finetune, images with masks
segment_finetune.

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
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = AUTO
    """Name of a recipe; --list shows them. `auto` looks at the images."""
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
    words: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    @property
    def given(self) -> frozenset[str]:
        """The options among the words, dotted and with underscores."""
        return _given(self.words)


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    given, stored = _given(args), value_of(args, "resume")
    if "json" in given and not given & {"list", "dry_run", "help", "help_all"}:
        raise UsageError("--json goes with --list or --dry-run; log.jsonl in the run folder has every epoch as JSON")
    return _of_run(args, Path(stored)) if stored else _of_recipe(args)


def for_images(options: Options) -> Options:
    """The options of a run without a named recipe, with the fields of the one that fits its images as the defaults."""
    config, line = choose_recipe(run_config(options))
    return _with_defaults(options.words, AUTO, config, line)


def run_config(options: Options) -> RunConfig:
    """The configuration, with the options that have a short name."""
    config = options.config
    if options.data is not None:
        config = replace(config, data=replace(config.data, source=options.data))
    if options.output is not None:
        config = replace(config, output=replace(config.output, folder=str(options.output)))
    return config


def _of_recipe(args: Sequence[str]) -> Options:
    """With the named recipe's fields as the defaults; without a name as far as the words alone tell (`for_images`)."""
    recipe = args[0] if args and not args[0].startswith("-") else AUTO
    if recipe == AUTO:
        default = _before_a_recipe(args)
        args = _with_moved(args, default.config)
        try:
            options = _parse_for(args, default)  # a name may stand anywhere
        except UsageError as error:
            source = value_of(args, "data", "data.source") or ""
            if not source or source == "digits" or re.search(r"[:*?{[]", source) or Path(source).exists():
                raise
            raise UsageError(f"{source}: no such folder, so that its task is unknown; {error}") from None
        recipe = options.recipe
        if recipe == AUTO:
            return replace(options, words=tuple(args))
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}; {nearest(recipe, RECIPES)}")
    return _with_defaults(args, recipe, replace(RECIPES[recipe](), recipe=recipe))


def _with_defaults(args: Sequence[str], recipe: str, config: RunConfig, *lines: str) -> Options:
    args = _with_moved(args, config)
    config, scaled = with_scaled_warmup(config, value_of(args, "schedule.epochs"), _given(args))
    options = _parse_for(args, Options(recipe=recipe, config=config))
    for line in filter(None, (*lines, scaled)):
        tell(line)
    return replace(options, words=tuple(args))


def _before_a_recipe(args: Sequence[str]) -> Options:
    """Defaults that help shows, or that stand in the way of no field that is given."""
    source = value_of(args, "data", "data.source")
    config = RECIPES[(source and recipe_of_data(source)) or SMALL_IMAGES]()
    return Options(config=config if {*args} & {*HELP_WORDS} else replace(config, schedule=ScheduleConfig()))


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
    options = _parse_for(_with_moved(args, config), Options(config=config))
    for name, value in calls.items():
        if field_of(run_config(options), name) == WITHHELD:
            raise RunFolderError(
                f"{stored}: its {name} would run or fetch {value!r}; if you trust it, give it again: "
                f"--{name.replace('_', '-')} {shlex.quote(value)}"
            )
    if options.recipe != AUTO or options.output is not None:
        raise UsageError(f"--resume {stored} takes neither a recipe nor --output: the run has its own")
    return options


def _given(args: Sequence[str]) -> frozenset[str]:
    """The options among the words, dotted and with underscores."""
    flags = (word.partition("=")[0].lstrip("-") for word in args if word.startswith("--"))
    return frozenset(flag.replace("-", "_").replace(".no_", ".") for flag in flags)


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
    options = parse(Options, args, command="train", description=_DESCRIPTION, default=default, common=_COMMON)
    given, before = options.config, default.config
    for short, long, value, usual in (
        (options.data, "data.source", given.data.source, before.data.source),
        (options.output, "output.folder", given.output.folder, before.output.folder),
    ):
        if short is not None and value not in (usual, str(short)):
            raise UsageError(f"--{long} {value} and --{long.partition('.')[0]} {short} are the same option; give one")
    return options
