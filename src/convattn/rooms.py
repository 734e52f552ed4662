"""The one list of tasks. A room is imported when it is asked for; whoever asks knows `convattn.task` and no room."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

from convattn.task import RoomData, RoomWords, TaskRoom

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DEFAULT", "KINDS", "data_of", "kind_of", "kind_of_data", "room", "room_of", "words_of"]

DEFAULT = "classification"  # of what was written before there were others, and of a network with classes

# Kind -> its room, or the package that has it: `options.WORDS` without torch, `room.ROOM` with it.
KINDS: dict[str, TaskRoom | str] = {
    DEFAULT: "convattn.classification",
    "segmentation": "convattn.segmentation",
    "detection": "convattn.detection",
}


def room(kind: str = DEFAULT) -> TaskRoom:
    """The room of a task; ValueError for an unknown kind."""
    found = _entry(kind)
    return cast(TaskRoom, importlib.import_module(f"{found}.room").ROOM) if isinstance(found, str) else found


def words_of(kind: str = DEFAULT) -> RoomWords:
    """What can be said of a task without torch; raises ValueError for an unknown kind."""
    found = _entry(kind)
    return cast(RoomWords, importlib.import_module(f"{found}.options").WORDS) if isinstance(found, str) else found.words


def data_of(kind: str = DEFAULT) -> RoomData:
    """What a task knows of its data on disk, without torch.

    ValueError for an unknown kind, or one whose data cannot be looked through.
    """
    name = words_of(kind).data
    if name is None:
        raise ValueError(f"data of the task {kind} cannot be looked through")
    return cast(RoomData, importlib.import_module(name))


def kind_of_data(source: object) -> str:
    """The task whose data lie at a place, by their layout, without torch; the default where no other knows it."""
    others = [kind for kind in KINDS if kind != DEFAULT and words_of(kind).data is not None]
    return next((kind for kind in others if data_of(kind).recognises(str(source))), DEFAULT)


def kind_of(model: nn.Module) -> str | None:
    """The task of a model: what its `task_kind` says; None for a backbone without a head."""
    kind: Any = getattr(model, "task_kind", None)
    return kind if kind is not None else DEFAULT if getattr(model, "num_classes", 0) else None


def room_of(model: nn.Module, source: object) -> TaskRoom:
    """The room of a model from `source`; ValueError if it has no task, being a backbone alone or a pyramid."""
    kind = kind_of(model)
    if kind is None:
        raise ValueError(f"{source}: outputs no classes; take a model with a head")
    return room(kind)


def _entry(kind: str) -> TaskRoom | str:
    if kind not in KINDS:
        raise ValueError(
            f"task {kind[:40]!r} is unknown to this version; known are {', '.join(KINDS)}; update convattn"
        )
    return KINDS[kind]
