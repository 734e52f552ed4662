"""The options of a command that a task adds to: those of the model that stands among its words."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convattn.cli.arguments import UsageError, parse
from convattn.cli.help import HELP_WORDS
from convattn.rooms import DEFAULT, KINDS, words_of
from convattn.shown import shown

__all__ = ["parse_for", "parse_for_task"]


def parse_for_task(options: type, part: str, args: Sequence[str], *, command: str, description: str) -> Any:
    """Arguments as an instance of `options`, and of what the room of the model's task adds to them.

    `part` says which of its words: "evaluation", "prediction" or "export". The others, and errors, as of `parse`.
    """
    try:
        return parse_for(_kind(args), options, part, args, command=command, description=description)
    except UsageError as error:
        model = args[0] if args and not args[0].startswith("-") else None
        if model is None or Path(model).exists():
            raise
        raise UsageError(f"{shown(model)}: no such file or folder; of a model by that name: {error}") from None


def parse_for(kind: str, options: type, part: str, args: Sequence[str], *, command: str, description: str) -> Any:
    """The same for a task that is known."""
    added = getattr(words_of(kind), part)
    both = dataclasses.make_dataclass(options.__name__, (), bases=(added, options), frozen=True)  # ours come first
    try:
        return parse(both, args, command=command, description=description)
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error)) from None  # of the room's own checks


def _kind(args: Sequence[str]) -> str:
    """The task of the model among the words. Files are looked into only where there is a choice."""
    named = [word for word in args if not word.startswith("-") and Path(word).exists()]
    if len(KINDS) == 1 or not named or set(args) & set(HELP_WORDS) == set(args):
        return DEFAULT
    from convattn.model_files import stored_kind  # torch

    return next((kind for word in named if (kind := stored_kind(word)) is not None), DEFAULT)
