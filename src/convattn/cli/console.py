"""What commands write: to standard output, which has to arrive, and to standard error, which may be lost."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from convattn.shown import shown
from convattn.task import Table as Rows

__all__ = ["OutputError", "console", "notes", "plain", "print_table", "progress_bar", "say", "standard_streams", "warn"]


class OutputError(Exception):
    """Standard output takes no more: its reader has gone, or the disk is full."""

    def __init__(self, cause: OSError):
        super().__init__(f"standard output could not be written: {cause.strerror}")
        self.is_reader_gone = isinstance(cause, BrokenPipeError)


def say(line: str) -> None:
    """Print one line to standard output, whatever names stand in it."""
    print(shown(line))


def warn(line: str) -> None:
    """Print one line to standard error, whatever names stand in it."""
    print(shown(line), file=sys.stderr)


def console() -> Console:
    """Standard output, for tables: names are no markup; without a terminal no line is wrapped and no cell cut."""
    if sys.stdout.isatty():
        return Console(**_PLAIN)
    return Console(file=cast(IO[str], _WithoutPadding()), width=_ENDLESS, **_PLAIN)


def notes() -> Console:
    """Standard error, for progress."""
    return Console(stderr=True, **_PLAIN)


def print_table(table: Rows) -> None:
    """A table as aligned columns."""
    drawn = Table(box=None, pad_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(shown(column), justify="right" if index in table.numbers else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(shown, row))
    console().print(drawn)


def progress_bar() -> Progress:
    """A bar on standard error for what takes long, where that is a terminal."""
    return Progress(console=notes(), disable=not notes().is_terminal, transient=True)


def plain(text: str, style: str = "") -> RenderableType:
    """Text in which names may stand, for a table, a status or a title."""
    return Text(shown(text), style)


_PADDING = re.compile(" +$", re.MULTILINE)
_ENDLESS = 1_000_000  # characters
_PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False, "emoji": False}


@contextmanager
def standard_streams() -> Iterator[None]:
    """While a command runs: characters that an output cannot hold are escaped, and there is an output in any case.

    Notes that standard error does not take are lost, so that a run goes on when its terminal has been closed.

    Raises:
        OutputError: when standard output cannot be written, at the end at the latest.
    """
    before = sys.stdout, sys.stderr
    with _or_nowhere(before[0]) as output, _or_nowhere(before[1]) as errors:
        sys.stdout, sys.stderr = _Stream(output, is_result=True), _Stream(errors, is_result=False)
        try:
            try:
                yield
            except SystemExit:  # after --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
        except OutputError:
            _discard(output)
            raise
        finally:
            sys.stdout, sys.stderr = before


@contextmanager
def _or_nowhere(stream: TextIO | None) -> Iterator[TextIO]:
    """A stream; where there is none (cron, `>&-`), one that leads nowhere and takes its place among the files."""
    if stream is not None:
        yield stream
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        yield nowhere


def _discard(stream: TextIO) -> None:
    """Let what Python still holds for an output go nowhere, so that it does not complain at exit."""
    with suppress(OSError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _WithoutPadding:
    """Standard output without the spaces that fill the last column of a table."""

    def write(self, text: str) -> int:
        return sys.stdout.write(_PADDING.sub("", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


class _Stream:
    """A text stream that takes every character."""

    def __init__(self, stream: TextIO, *, is_result: bool):
        self._stream, self._is_result = stream, is_result

    def write(self, text: str) -> int:
        try:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:
                return self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if self._is_result:
            raise OutputError(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
