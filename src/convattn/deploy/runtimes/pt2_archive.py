"""What PyTorch's two kinds of `.pt2` files have in common: both are zip archives with a place for texts of others.

PyTorch reads them by running what is in them. An exported program brings its guards as Python source, which torch
compiles, and may hold pickled objects; an AOTInductor package is machine code. Opening either is like importing a
module from whoever wrote the file. The functions here only read the archive.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convattn.deploy.runtimes.runtime import UnreadableFile
from convattn.deploy.suffixes import SUFFIXES

__all__ = ["SUFFIX", "archive", "contents", "digest", "one_line", "read_metadata", "write_metadata"]

SUFFIX = SUFFIXES["torch_export"]

_LONGEST = 2**24  # bytes of a description: a compressed entry can grow to fill the memory
_PART = 2**20  # bytes read at a time
_GROWTH = 16  # PyTorch does not compress what it writes; somebody may have
_HARMLESS = 2**26  # bytes
_ENTRY = "extra/convattn.json"
_KINDS = {"/models/": "torch_export", "/data/aotinductor/": "aot_inductor"}


@contextmanager
def archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file as an archive, to read.

    Raises:
        UnreadableFile: if it is missing, no archive, cut short or damaged; for damage found inside the block too.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            _check_entries(path, opened.infolist())
            yield opened
    except FileNotFoundError:
        raise UnreadableFile(f"{path}: no such file") from None
    except UnreadableFile:
        raise
    except Exception as error:  # each way of packing has errors of its own; of a password, a name that is no text
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableFile(f"{path}: is no .pt2 file, or damaged or cut short ({one_line(error)})") from None


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse what would fill the memory or the disk, and what would be unpacked elsewhere."""
    unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > max(_GROWTH * packed, _HARMLESS):
        raise UnreadableFile(f"{path}: {packed:,} bytes would unpack to {unpacked:,}; no exported file is packed so")
    outside = next((e.filename for e in entries if e.filename.startswith("/") or ".." in Path(e.filename).parts), None)
    if outside is not None:
        raise UnreadableFile(f"{path}: its entry {outside!r} lies outside the archive")


def contents(path: Path) -> str:
    """The format of a `.pt2` file, "torch_export" or "aot_inductor", by what the archive holds.

    Raises:
        UnreadableFile: if it is missing, damaged, or neither.
    """
    with archive(path) as opened:
        for name in opened.namelist():
            for folder, format in _KINDS.items():
                if folder in name:
                    return format
    raise UnreadableFile(f"{path}: is an archive without an exported program or an AOTInductor package")


def write_metadata(path: Path, text: str) -> None:
    """Put `text` among the archive's extra files, in the place of what was there."""
    with archive(path) as opened:
        names = opened.namelist()
    if any(name.endswith(_ENTRY) for name in names):
        _drop_entry(path)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr(f"{names[0].partition('/')[0]}/{_ENTRY}", text)


def read_metadata(path: Path) -> str | None:
    """What stands among the archive's extra files; None if there is nothing of ours."""
    with archive(path) as opened:
        entry = next((name for name in opened.namelist() if name.endswith(_ENTRY)), None)
        if entry is None:
            return None
        if opened.getinfo(entry).file_size > _LONGEST:
            raise UnreadableFile(f"{path}: its description is damaged: it has more than {_LONGEST} bytes")
        return opened.read(entry).decode(errors="replace")


def digest(path: Path) -> str:
    """SHA-256 of all other entries of the archive in the order of their names: each name, length and content."""
    total = hashlib.sha256()
    with archive(path) as opened:
        for entry in sorted(opened.infolist(), key=lambda entry: entry.filename):
            if not entry.filename.endswith(_ENTRY):
                total.update(f"{entry.filename}\0{entry.file_size}\0".encode())
                with opened.open(entry) as content:
                    while part := content.read(_PART):
                        total.update(part)
    return total.hexdigest()


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _drop_entry(path: Path) -> None:
    """Write the archive anew without our entry."""
    shorter = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(shorter, "w") as target:
            for entry in source.infolist():
                if not entry.filename.endswith(_ENTRY):
                    target.writestr(entry, source.read(entry))
        os.replace(shorter, path)
    finally:
        shorter.unlink(missing_ok=True)
