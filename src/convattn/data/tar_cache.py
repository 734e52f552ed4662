"""What an index of archives found, kept between runs where finding it took long.

In `$XDG_CACHE_HOME/convattn` (`~/.cache/convattn` by default), a file for each set of archives; safe to delete.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convattn.atomic import write_atomically
from convattn.data.file_names import image_suffixes

__all__ = ["Member", "load_index", "save_index"]

_FORM = 3  # counts how often it has changed what an index keeps


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file lies within one of several archives."""

    tar: int  # number of the archive
    name: str  # within it; of an archive in the archive, behind that one's name
    offset: int  # of its content, bytes from the beginning of the outermost archive
    size: int  # bytes
    problem: str = ""  # why it is not to be read


def load_index(tars: Sequence[Path]) -> list[Member] | None:
    """The files of these archives as they were found before; None if they were not, or the archives have changed."""
    try:
        with open(_file(tars), "rb") as file, np.load(file, allow_pickle=False) as stored:
            names = stored["names"].tobytes().split(b"\0")
            places = zip(*(stored[key].tolist() for key in ("tar", "offset", "size")), strict=True)
            problems = {int(index): why for index, why in json.loads(stored["problems"].tobytes()).items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or not whole
        return None
    return [
        Member(tar, os.fsdecode(name), offset, size, problems.get(index, ""))
        for index, (name, (tar, offset, size)) in enumerate(zip(names, places, strict=True))
    ]


def save_index(tars: Sequence[Path], members: Sequence[Member]) -> None:
    """Keep what was found, one member or more. Where nothing can be written, the next run looks again."""
    buffer = io.BytesIO()
    problems = {index: member.problem for index, member in enumerate(members) if member.problem}
    np.savez(
        buffer,
        names=np.frombuffer(b"\0".join(os.fsencode(member.name) for member in members), np.uint8),
        tar=np.array([member.tar for member in members], np.int32),
        offset=np.array([member.offset for member in members], np.int64),
        size=np.array([member.size for member in members], np.int64),
        problems=np.frombuffer(json.dumps(problems).encode(), np.uint8),
    )
    try:
        write_atomically(_file(tars), buffer.getvalue())
    except OSError:
        return


def _file(tars: Sequence[Path]) -> Path:
    """Named by the archives, their paths, sizes and times of change, and by what is looked for in them."""
    marks: list[object] = [(os.path.realpath(tar), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in tars]
    marks.append((_FORM, sorted(image_suffixes())))
    name = hashlib.sha256(repr(marks).encode(errors="surrogateescape")).hexdigest()[:32]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convattn" / f"{name}.npz"
