"""What `--help` shows: the page that tyro prints, read and set again for people."""

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from convattn.shown import shown

__all__ = ["HELP_WORDS", "help_page", "texts_shown"]

HELP_WORDS = ("-h", "--help", "--help-all")

_WIDEST = 120  # characters in a line, even where a terminal has more
_COLUMN = 30  # characters of the longest option that has its text beside it
_wrapped = partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)  # words may be copied
_OPTIONS = "options"  # of the command itself, not of a part of a configuration


@dataclass(frozen=True)
class _Entry:
    """One argument or option."""

    call: str  # as it is written: "--data.batch-size INT"
    text: str

    @property
    def name(self) -> str:
        return self.call.partition(" ")[0]


@dataclass(frozen=True)
class _Group:
    """The arguments, the options of the command itself, or those of one part of a configuration."""

    title: str
    purpose: str = ""
    entries: list[_Entry] = field(default_factory=list)


def help_page(page: str, prog: str, description: str, common: Sequence[str] = ()) -> str:
    """The help of a command, out of the page that tyro prints, its boxes below one another.

    Of many options those in `common` are shown, and of the others how many there are; all where it is empty.
    """
    groups = {group.title: group for group in _read(page)}
    arguments = groups.pop("positional arguments", _Group("arguments"))
    calls = (f"[{entry.call}]" if "(default: " in entry.text else entry.call for entry in arguments.entries)
    parts = [" ".join(["usage:", prog, *calls, "[OPTIONS]"]), description.strip()]
    shown_groups = _short(groups, common) if common else list(groups.values())
    shown_groups[0].entries.append(_Entry("-h, --help", "Show this page."))
    if common:
        shown_groups[0].entries.append(_Entry("--help-all", "Show every option."))
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    arguments = dataclasses.replace(arguments, title="arguments")
    parts += ["\n".join(_lines(group, width)) for group in (arguments, *shown_groups) if group.entries]
    return "\n\n".join(parts) + "\n"


def texts_shown(value: Any) -> Any:
    """Options as help shows them: what stands in a run's configuration may be anything."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: texts_shown(getattr(value, name)) for name in names})
    return type(value)(shown(value)) if isinstance(value, str | Path) else value


def _read(page: str) -> list[_Group]:
    """The boxes of tyro's page: a title, perhaps a purpose above a rule, arguments with their texts beside or below."""
    groups: list[_Group] = []
    for line in page.splitlines():
        if title := re.match(r"╭─ (.*?) ─", line):
            groups.append(_Group(title[1]))
        if not groups or not line.startswith("│"):
            continue
        content = line[2:].rstrip(" │")
        group = groups[-1]
        if content.startswith("──"):
            groups[-1] = _Group(group.title, " ".join(entry.call for entry in group.entries))
        elif content.startswith(" ") and group.entries:  # the text of a long option
            before = group.entries[-1]
            group.entries[-1] = _entry(before.call, f"{before.text} {content.strip()}")
        elif content:
            call, _, text = content.partition("  ")
            group.entries.append(_entry(call, text.strip()))
    for group in groups:
        group.entries[:] = [entry for entry in group.entries if entry.name != "-h,"]
    return groups


def _entry(call: str, text: str) -> _Entry:
    """Without what says nothing to people: that None is no number, that a switch is off."""
    switch = re.fullmatch(r"(\S+), (\S+)", call)
    if switch and text.endswith(("(default: True)", "(default: False)")):
        is_on = text.endswith("(default: True)")
        call, text = switch[2 if is_on else 1], text.rpartition("(")[0] + ("(on by default)" if is_on else "")
    call = call.replace("{None}|", "").replace("{None,", "{")
    call = re.sub(r"\{([A-Z ]+)\}", r"\1", call)
    call = re.sub(r"\[(\w+) \[\1 \.\.\.\]\]", r"\1...", call)
    return _Entry(call, re.sub(r"\((default: (None)?|required)\)$", "", text.strip()).strip())


def _short(groups: dict[str, _Group], common: Sequence[str]) -> list[_Group]:
    """The common options, and a line for each group that has others."""
    by_name = {_positive(entry.name): entry for group in groups.values() for entry in group.entries}
    others = []
    for group in groups.values():
        rest = [entry.name for entry in group.entries if _positive(entry.name) not in common]
        if rest:
            title = group.title.removesuffix(" options")
            call = f"--{title}.…" if group.title != _OPTIONS else ", ".join(rest)
            counted = f"({len(rest)} {'option' if len(rest) == 1 else 'options'})"
            others.append(_Entry(call, f"{group.purpose} {counted}".strip()))
    return [_Group(_OPTIONS, entries=[by_name[name] for name in common]), _Group("more options", entries=others)]


def _positive(name: str) -> str:
    """An option's name without the `no` of a switch that is on by default."""
    return re.sub(r"(?<=[.-])no-", "", name)


def _lines(group: _Group, width: int) -> Iterator[str]:
    yield f"{group.title}: {group.purpose}".rstrip(": ") + ("" if group.purpose else ":")
    longest = min(_COLUMN, width // 3)
    column = max((len(entry.call) for entry in group.entries if len(entry.call) <= longest), default=longest) + 4
    for entry in group.entries:
        first, *rest = _wrapped(entry.text, width=max(width - column, 20)) or [""]
        if len(entry.call) > column - 4:
            yield f"  {entry.call}"
            rest = [first, *rest]
        else:
            yield f"  {entry.call:<{column - 2}}{first}".rstrip()
        yield from (" " * column + line for line in rest)
