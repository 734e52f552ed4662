"""The classifier of a run's configuration: its weights, its head in the order of the classes, its input."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from convattn.backbones.registry import create_model, image_size_of
from convattn.config_errors import ConfigError
from convattn.evaluation import evaluating
from convattn.shown import reason
from convattn.sizes import Size, image_shape
from convattn.weights.head_rows import FRESH, STAND_INS, read_head_rows

__all__ = ["build_classifier", "check_size", "describe_input"]


def build_classifier(config: Any, num_classes: int, classes: Sequence[str], file_classes: Sequence[str]) -> nn.Module:
    """The model of a configuration, with weights if it names some.

    Args:
        config: `ModelConfig`: name, options, weights to start from.
        num_classes: outputs.
        classes: their names; none if they have none.
        file_classes: those of the model file that it starts from; none without one. Where they hold all of `classes`,
            each output starts as that of its name; otherwise the classifier starts fresh.

    Raises:
        ConfigError: if the model takes no such option, or `head_rows` are not as many as the classes.
        CheckpointError: if the weights cannot be had or do not fit.
    """
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    options: Mapping[str, Any] = {**{name: rate for name, rate in rates.items() if rate}, **config.options}
    rows = _head_rows(config, num_classes, classes, file_classes)
    weights: dict[str, Any] = dict(pretrained_path=config.pretrained_path, head_rows=rows)
    if list(classes) != list(file_classes):  # else there is nothing to tell
        weights["classes"] = classes
    try:
        model = create_model(config.name, config.pretrained, num_classes, **weights, **options)
    except TypeError as error:
        raise ConfigError(f"model {config.name} cannot be built: {error}") from None
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing()  # type: ignore[operator]
        except (AssertionError, AttributeError):  # how timm's models say so
            raise ConfigError(f"model.grad_checkpointing: {config.name} does not offer it; leave it out") from None
    return model


def describe_input(model: nn.Module, image_size: Size | None, crop_ratio: float | None, classes: Sequence[str]) -> None:
    """Let `model` know the images that it is trained on, and the names of its outputs."""
    cfg: dict[str, Any] = dict(model.pretrained_cfg or {})  # type: ignore[arg-type]
    if image_size is not None:
        cfg["input_size"] = image_shape(image_size)
    if crop_ratio is not None:
        cfg["crop_pct"] = crop_ratio
    cfg["num_classes"] = len(classes)
    cfg["label_names"] = tuple(classes)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]


@torch.no_grad()
def check_size(model: nn.Module, config: Any, size: Size | None) -> None:
    """Try an image of another size than the model's own: some take theirs alone; ConfigError then."""
    given = config.options.get("img_size")
    own = image_size_of(config.name) if given is None else given
    if size is None or image_shape(size) == image_shape(own):
        return
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            model(torch.zeros(1, *image_shape(size), device=device))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise ConfigError(
            f"data.image_size {size}: {config.name} does not take such images ({reason(error, 200)}); its own size is "
            f"{own}: set data.image_size {own}"
        ) from None


def _head_rows(config: Any, num_classes: int, classes: Sequence[str], names: Sequence[str]) -> list[int] | str | None:
    """Which outputs of a file with classes of such names the model's start as; None for the same, or new ones."""
    if config.head_rows == FRESH:
        return FRESH
    if config.head_rows is not None:
        rows = read_head_rows(config.head_rows)
        if len(rows) != num_classes:
            raise ConfigError(f"{config.head_rows}: {len(rows)} rows for {num_classes} classes; write one a class")
        return rows
    if not classes or not names or list(classes) == list(names):
        return None
    position = {name: row for row, name in enumerate(names)}
    wanted = [name if name in position else STAND_INS.get(name, name) for name in classes]
    if len(position) < len(names) or not {*wanted} <= position.keys():
        return FRESH  # even where they are as many
    return [position[name] for name in wanted]
