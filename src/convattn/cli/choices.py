"""What `convattn train` chooses where the command line leaves it open; each choice is one line for the user.

Choices are made before a configuration is final and stored in it as plain values, so a run that goes on makes none.
"""

import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convattn.cli.console import warn
from convattn.data.some_images import usual_size
from convattn.data.sources import is_stream, open_training
from convattn.recipes import RECIPES
from convattn.rooms import DEFAULT, kind_of_data, words_of
from convattn.shown import reason
from convattn.training.config import RunConfig

__all__ = ["SMALL_IMAGES", "choose_recipe", "choose_rest", "recipe_of_data", "tell", "value_of", "with_scaled_warmup"]

SMALL_IMAGES = "smt_nano_small_images"
_DIGITS = "smt_nano_digits"
_PHOTOGRAPHS = "finetune"
_SMALL = 64  # short side up to which images are small ones, pixels
_SIZES = (32, 64)  # at which they are seen: the nearest


def tell(line: str) -> None:
    """Say what was chosen, once where torchrun has started several processes."""
    if os.environ.get("RANK", "0") == "0":
        warn(line)


def choose_recipe(config: RunConfig) -> tuple[RunConfig, str]:
    """The recipe for a configuration's images, by the sizes of some, and a line about it; DataError as in training."""
    source = config.data.source
    own = recipe_of_data(source)
    if own is not None:
        return _recipe(own), f"{source}: recipe {own}, by the layout of the data; name another to take that"
    if source == "digits":
        return _recipe(_DIGITS), f"{source}: recipe {_DIGITS}, which is made for them"
    if is_stream(source):
        return _recipe(SMALL_IMAGES), (
            f"{source}: recipe {SMALL_IMAGES}, since a pipe cannot be looked into; for photographs name {_PHOTOGRAPHS}"
        )
    with warnings.catch_warnings(action="ignore"):  # told when the run opens them
        labels = getattr(config.task, "validation_labels", None)
        data, _ = open_training(source, validation=config.data.validation, validation_labels=labels)
    assert data is not None  # no pipe
    seen = usual_size(data)
    if seen is None:
        return _recipe(SMALL_IMAGES), f"{source}: recipe {SMALL_IMAGES}; none of the images looked at can be read"
    short = min(seen)
    is_small = short <= _SMALL
    chosen = _recipe(SMALL_IMAGES if is_small else _PHOTOGRAPHS)
    if is_small:
        size = min(_SIZES, key=lambda size: abs(size - short))
        chosen = replace(chosen, data=replace(chosen.data, image_size=size))
    return chosen, (
        f"{source}: {len(data):,} training images of about {seen[0]} x {seen[1]} pixels, so recipe {chosen.recipe} "
        f"({'up to' if is_small else 'above'} {_SMALL} pixels); name another to take that, --list shows them"
    )


def recipe_of_data(source: str) -> str | None:
    """The recipe for data of another task than the default one, by their layout."""
    kind = kind_of_data(source)
    return None if kind == DEFAULT else words_of(kind).recipe


def with_scaled_warmup(config: RunConfig, epochs: str | None, given: Collection[str]) -> tuple[RunConfig, str]:
    """A recipe with as many epochs as the command line says, its warm-up shortened with them, and a line about it."""
    schedule = config.schedule
    if epochs is None or not epochs.isdecimal() or {"schedule.warmup_epochs", "schedule.warmup_updates"} & {*given}:
        return config, ""
    wanted = int(epochs)
    if not 0 < wanted < schedule.epochs or not schedule.warmup_epochs or schedule.milestones:
        return config, ""
    warmup = round(schedule.warmup_epochs * wanted / schedule.epochs, 4)
    line = (
        f"schedule.warmup_epochs {warmup:g} instead of {schedule.warmup_epochs:g}, in proportion to "
        f"schedule.epochs {wanted} instead of {schedule.epochs}"
    )
    return replace(config, schedule=replace(schedule, epochs=wanted, warmup_epochs=warmup)), line


def choose_rest(config: RunConfig, given: Collection[str], *, by_default: bool) -> RunConfig:
    """Weights that can be had, a batch that the images fill, an output folder that is free.

    Args:
        config: of a new run.
        given: the fields that the command line sets, dotted: those stay as they are.
        by_default: no recipe was named.
    """
    from convattn.training.output import check_output
    from convattn.training.places import with_absolute_paths

    if _is_alone():  # several processes could find different things; one of them checks the folder when they begin
        config = _with_free_folder(config, given)
        check_output(with_absolute_paths(config), resume=False)
    if by_default and "model.pretrained" not in given:
        config = _with_weights(config, given)
    return _fitted(config, given)


def _recipe(name: str) -> RunConfig:
    return replace(RECIPES[name](), recipe=name)


def _with_free_folder(config: RunConfig, given: Collection[str]) -> RunConfig:
    """Another number behind the recipe's folder where that holds something already."""
    if {"output", "output.folder"} & {*given}:
        return config
    first = folder = Path(config.output.folder)
    number = 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    if folder == first:
        return config
    tell(f"{first} holds something already; this run goes to {folder}")
    return replace(config, output=replace(config.output, folder=str(folder)))


def _with_weights(config: RunConfig, given: Collection[str]) -> RunConfig:
    """From scratch where the recipe's weights are not to be had: all layers learn alike, from the first epoch on."""
    model = config.model
    if not model.pretrained or model.pretrained_path is not None or not _is_alone():
        return config
    from convattn.backbones.registry import create_model  # torch

    try:
        with warnings.catch_warnings(action="ignore"):
            create_model(model.name, pretrained=True, **model.options)
    except (OSError, RuntimeError, ValueError) as error:
        from convattn.weights.errors import CheckpointError

        if isinstance(error, ValueError) and not isinstance(error, CheckpointError):
            raise  # an unknown name, or an option of another model
        tell(f"{model.name} is trained from scratch, which takes more images and epochs: {reason(error)}")
    else:
        return config
    fresh: dict[str, dict[str, Any]] = {
        "model": {"pretrained": False},
        "loop": {"freeze_epochs": 0},
        "optimizer": {"layer_decay": None},
    }
    for part, fields in fresh.items():
        changed = {name: value for name, value in fields.items() if f"{part}.{name}" not in given}
        config = replace(config, **{part: replace(getattr(config, part), **changed)})
    return config


def _fitted(config: RunConfig, given: Collection[str]) -> RunConfig:
    """What the task chooses by the images, and as many of them in a batch as there are."""
    from convattn.rooms import room  # torch

    source, task = config.data.source, room(config.task.kind)
    if is_stream(source):
        return config
    with warnings.catch_warnings(action="ignore"):  # told when the run opens them
        train, _ = task.open_training(config)
    config, lines = task.fitted(config, train)
    for line in lines:
        tell(line)
    multiple = config.task.batch_multiple
    fits = len(train) // int(os.environ.get("WORLD_SIZE", "1")) // multiple * multiple
    if "data.batch_size" in given or not 0 < fits < config.data.batch_size:
        return config
    tell(f"data.batch_size {fits} instead of {config.data.batch_size}: {source} has {len(train)} training images")
    return replace(config, data=replace(config.data, batch_size=fits))


def _is_alone() -> bool:
    """Whether no launcher such as torchrun started this process, beside others or again."""
    return "WORLD_SIZE" not in os.environ


def value_of(words: Sequence[str], *names: str) -> str | None:
    """What the last of these options is given; None where there is none. Names are dotted, with underscores."""
    found = None
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") in names:
            found = value if equals else next(iter(words[at + 1 :]), None)
    return found
