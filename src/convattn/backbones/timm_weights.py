"""A model of timm with weights from a file: loaded as ours are, or by timm where only it can translate the names."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from torch import nn

from convattn.shown import brief
from convattn.weights.errors import CheckpointError, WeightsNote
from convattn.weights.find import find_weights
from convattn.weights.load import HeadRows, load_pretrained, not_finite
from convattn.weights.official import is_behind, shapes_by_name, unwrap_model
from convattn.weights.read import read_checkpoint

__all__ = ["create_timm"]

_OF_LEVELS = ("features_only", "out_indices", "feature_cls")


def create_timm(
    name: str, path: str | Path, *, head_rows: HeadRows = None, classes: Sequence[str] = (), **options: Any
) -> nn.Module:
    """A model of timm that starts as the file at `path`; see `convattn.backbones.registry.create_model`.

    Raises:
        CheckpointError: if the file cannot be read or does not fit.
    """
    content = read_checkpoint(path)
    model = timm.create_model(name, pretrained=False, **options)
    cfg: Any = timm.get_pretrained_cfg(name)
    first_conv = cfg.first_conv if isinstance(cfg.first_conv, str) else None
    head: dict[str, Any] = dict(head_rows=head_rows, classes=classes, pyramid=options.get("features_only", False))
    try:
        load_pretrained(
            unwrap_model(model), content, str(path), first_conv=first_conv, classifier=cfg.classifier, **head
        )
    except CheckpointError as error:
        if head_rows is not None:
            raise
        return _translated(name, content, str(path), error, model, **options)
    return model


def _translated(
    name: str, content: Any, source: str, misfit: CheckpointError, fresh: nn.Module, **options: Any
) -> nn.Module:
    """The model by timm's own loader, which knows other names and sizes of tables; what it did is said."""
    state = find_weights(content, shapes_by_name(fresh), source).state
    shapes = {key: tensor.shape for key, tensor in state.items()}
    classifier: Any = timm.get_pretrained_cfg(name).classifier
    head = tuple(f"{layer}." for layer in ((classifier,) if isinstance(classifier, str) else classifier or ()))
    overlay: dict[str, Any] = dict(state_dict=state, custom_load=False)
    classes = next((len(tensor) for key, tensor in state.items() if key.startswith(head) and tensor.ndim), 0)
    if classes == getattr(fresh, "num_classes", 0) > 0:
        overlay["num_classes"] = classes  # else timm drops a head that fits
    try:
        with _lists_of_timm() as (missing, unexpected):
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception:  # whatever timm's translation stumbles on
        raise misfit from None
    if any(not key.startswith(head) for key in missing) and not options.get("features_only"):
        raise misfit
    if unexpected and options.get("features_only"):  # where timm itself minds nothing
        whole = timm.create_model(name, **{key: value for key, value in options.items() if key not in _OF_LEVELS})
        if not all(key.startswith(head) or is_behind(key, whole) for key in unexpected):
            raise misfit
    resized = [
        f"{key} {tuple(shapes[key])} to {tuple(tensor.shape)}"
        for key, tensor in model.state_dict().items()
        if key in shapes and shapes[key] != tensor.shape and not key.startswith(head)
    ]
    notes = [f"{word} {brief(names, 3)}" for word, names in (("resized", resized), ("left aside", unexpected)) if names]
    notes += [f"fresh {brief(missing, 3)}"] if missing else []
    notes += not_finite(model, model.state_dict())
    warnings.warn("; ".join([f"{source}: loaded by timm's rules for {name}", *notes]), WeightsNote, stacklevel=3)
    return model


@contextmanager
def _lists_of_timm() -> Iterator[tuple[list[str], list[str]]]:
    """What timm logs of missing and of unexpected entries while it loads weights."""
    lists: dict[str, list[str]] = {"Missing keys": [], "Unexpected keys": []}

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            what, _, rest = record.getMessage().partition(" (")
            lists.get(what, []).extend(rest.partition(")")[0].split(", "))

    logger = logging.getLogger("timm.models._builder")
    handler, level, spread = Keep(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lists["Missing keys"], lists["Unexpected keys"]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = spread
