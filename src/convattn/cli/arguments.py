"""The arguments of a command, parsed by tyro; what is wrong with them on one line."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import tyro

from convattn.atomic import check_writable
from convattn.cli.help import HELP_WORDS, help_page, texts_shown
from convattn.library_words import trusted

__all__ = ["UsageError", "check_at_least", "check_page", "parse", "words_of"]

_Options = TypeVar("_Options")

_OF_NUMBERS = {
    ": invalid literal for int() with base 10: ": " takes INT, not ",
    ": could not convert string to float: ": " takes FLOAT, not ",
}


class UsageError(ValueError):
    """A command was called in a way that it does not take; the exit status is 2."""


def parse(
    kind: type[_Options],
    args: Sequence[str],
    *,
    command: str,
    description: str | Callable[[], str],
    default: _Options | None = None,
    common: Sequence[str] = (),
) -> _Options:
    """Arguments as an instance of the dataclass `kind`.

    Args:
        kind: its fields are the options, their docstrings the help.
        args: the words behind the command.
        command: name of the command.
        description: what stands above the options in `--help`; a function where it takes time to know.
        default: an instance whose fields are the defaults; those of the class by default.
        common: of many options those that `--help` shows, with their dashes; `--help-all` shows all.

    Raises:
        UsageError: in one line, for a word that is unknown, missing or of another type or range.
        SystemExit: after `--help`.
    """
    prog = f"convattn {command}"
    given: dict[str, Any] = {} if default is None else {"default": default}
    asked = set(args) & set(HELP_WORDS)
    if asked:
        with trusted():  # these options have been checked
            shown = {name: texts_shown(value) for name, value in given.items()}
        page = _said(kind, ["--help"], prog, shown)[1]
        text = description if isinstance(description, str) else description()
        print(help_page(page, prog, text, () if "--help-all" in asked else common), end="")
        raise SystemExit(0)
    options, said = _said(kind, args, prog, given)
    if options is None:
        raise UsageError(f"{_one_line(said)}; see {prog} --help")
    return options


def words_of(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def check_at_least(least: int, options: Any, *names: str) -> None:
    """Raise UsageError for an option of these names that is given and below `least`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value >= least:  # nor NaN
            raise UsageError(f"--{name.replace('_', '-')} {value:g} must be {least} or more")


def check_page(path: Path | None) -> None:
    """Raise UsageError where --output names no page, OSError where none can be written; before the work, not after."""
    if path is None:
        return
    if path.suffix != ".html":
        raise UsageError(f"--output {path} must end in .html")
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; name a file")
    check_writable(path.parent)


def _said(kind: type[_Options], args: Sequence[str], prog: str, given: dict[str, Any]) -> tuple[_Options | None, str]:
    """What tyro makes of the words: the options, or None and what it prints then."""
    said = _Page()
    try:
        with _known_width(), redirect_stdout(said), redirect_stderr(said):
            return tyro.cli(kind, args=args, prog=prog, **given), ""
    except SystemExit:
        return None, said.getvalue()


class _Page(StringIO):
    """Takes what tyro prints, which draws boxes where they can be shown."""

    encoding = "utf-8"


@contextmanager
def _known_width() -> Iterator[None]:
    """What tyro prints is read here, not by people; in wider lines it would set boxes beside one another."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "120"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(message: str) -> str:
    """The gist of a message of tyro's: a box with a title and sections, in which arguments stand four spaces in."""
    box = [line[1:].rstrip(" │╮╯").removeprefix(" ") for line in message.splitlines()]
    title, *content = [line for line in box if line]
    sections: list[list[str]] = [[]]
    for line in content:
        if line.strip(" ─"):
            sections[-1].append(line)
        else:  # a rule
            sections.append([])
    sections = [section for section in sections if section]
    arguments = [[line.split()[0].rstrip(",") for line in section if re.match(r" {4}\S", line)] for section in sections]
    if "Required" in title:
        return f"missing {', '.join(arguments[0])}"
    text = " ".join(line.strip() for line in sections[0] if not line.startswith("    "))
    text = text.partition(" Got errors:")[0].strip().removesuffix(".").removeprefix("Error parsing ")
    text = (
        re.sub(r"^config\.((?:\w+\.)*)(\w+): (?=\2\.)", r"\1", text).removeprefix("config.").removeprefix("Options: ")
    )
    near = [
        name for section, names in zip(sections, arguments, strict=True) if "Perhaps" in section[0] for name in names
    ]
    text = re.sub(r": no type matching (.*) could be instantiated from \[(.*)\]", _as_expected, text)
    for theirs, ours in _OF_NUMBERS.items():
        text = text.replace(theirs, ours)
    return text[:1].lower() + text[1:] + (f"; nearest: {', '.join(near)}" if near else "")


def _as_expected(found: re.Match[str]) -> str:
    """tyro's types, such as {None}|{INT INT}, in words."""
    types = [kind.strip("{}") for kind in found[1].split("|") if kind != "{None}"]
    return f" takes {' or '.join(types)}, not {found[2]}"
