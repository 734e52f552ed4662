"""The arguments of a command, parsed by tyro; what is wrong with them on one line."""

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import tyro

from convattn.shown import shown

__all__ = ["UsageError", "parse"]

_Options = TypeVar("_Options")


class UsageError(ValueError):
    """A command was called in a way that it does not take; the exit status is 2."""


def parse(
    kind: type[_Options], args: Sequence[str], *, command: str, description: str, default: _Options | None = None
) -> _Options:
    """Arguments as an instance of the dataclass `kind`.

    Args:
        kind: its fields are the options, their docstrings the help.
        args: the words behind the command.
        command: name of the command.
        description: what stands above the options in `--help`.
        default: an instance whose fields are the defaults; those of the class by default.

    Raises:
        UsageError: in one line, for a word that is unknown, missing or of another type or range.
        SystemExit: after `--help`.
    """
    prog = f"convattn {command}"
    if default is not None and {"-h", "--help"} & set(args):
        default = _texts_shown(default)
    said = StringIO()
    try:
        with _wide_terminal(), redirect_stderr(said):
            if default is None:
                return tyro.cli(kind, args=args, prog=prog, description=description)
            return tyro.cli(kind, args=args, prog=prog, description=description, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    raise UsageError(f"{_one_line(said.getvalue())}; see {prog} --help")


def _texts_shown(value: Any) -> Any:
    """Options as help shows them: what stands in a run's configuration may be anything."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _texts_shown(getattr(value, name)) for name in fields})
    return type(value)(shown(value)) if isinstance(value, str | Path) else value


@contextmanager
def _wide_terminal() -> Iterator[None]:
    """Where standard output is no terminal, lines are as long as they need to be."""
    before = os.environ.get("COLUMNS")
    if before is None and not sys.stdout.isatty():
        os.environ["COLUMNS"] = "120"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)


def _one_line(message: str) -> str:
    """The gist of a message of tyro's: a box with a title and sections, in which arguments stand four spaces in."""
    box = [line[1:].rstrip(" │╮╯").removeprefix(" ") for line in message.splitlines()]  # the frame may be of spaces
    title, *content = [line for line in box if line]
    sections: list[list[str]] = [[]]
    for line in content:
        if line.strip(" ─-"):
            sections[-1].append(line)
        else:  # a rule
            sections.append([])
    sections = [section for section in sections if section]
    arguments = [[line.split()[0] for line in section if re.match(r" {4}\S", line)] for section in sections]
    if "Required" in title:
        return f"missing {', '.join(arguments[0])}"
    text = " ".join(line.strip() for line in sections[0] if not line.startswith("    "))
    text = text.partition(" Got errors:")[0].strip().removesuffix(".").removeprefix("Error parsing ")
    near = [
        name for section, names in zip(sections, arguments, strict=True) if "Perhaps" in section[0] for name in names
    ]
    text = re.sub(r": no type matching (.*) could be instantiated from \[(.*)\]", _as_expected, text)
    return text[:1].lower() + text[1:] + (f"; nearest: {', '.join(near)}" if near else "")


def _as_expected(found: re.Match[str]) -> str:
    """tyro's types, such as {None}|{INT INT}, in words."""
    types = [kind.strip("{}") for kind in found[1].split("|") if kind != "{None}"]
    return f" takes {' or '.join(types)}, not {found[2]}"
