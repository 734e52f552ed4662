"""Writing files so that a reader, a crash or a full disk never meets half of one."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["append_line", "check_writable", "unfinished", "write_atomically", "write_folder_atomically"]

_TEMPORARY = ".writing"  # suffix of what is not finished; a leftover of a killed process is safe to delete


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`: under a temporary name in the same folder, synced, then renamed.

    The folder is created if need be. A file that was there stays whole until the new one is.

    Raises:
        OSError: naming the path and the cause; the temporary file is gone and the old file untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # there may be no such folder
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from None
        raise


def check_writable(folder: Path) -> None:
    """Write where a folder is or will be, which leaves nothing behind: for use before the work, not after it.

    Raises:
        OSError: naming the folder and the cause.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise OSError(f"{folder} could not be written: {there}: {error.strerror}") from None


def append_line(path: str | Path, line: str) -> None:
    """Add `line` to the end of a text file; it and its folder are created if need be.

    Raises:
        OSError: naming the path and the cause; a part of the line that was written is cut off again.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            size, content = file.tell(), f"{line}\n".encode(errors="backslashreplace")
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from None


def write_folder_atomically(folder: str | Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write files into a temporary folder, then rename it to `folder`.

    Args:
        folder: where it goes; one that is there is replaced.
        fill: called with the temporary folder; writes whole, synced files (`write_atomically`).

    Raises:
        OSError: as `write_atomically`; the temporary folder is gone.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}{_TEMPORARY}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def unfinished(folder: str | Path) -> list[Path]:
    """What killed processes were writing in `folder` and below; safe to delete while nothing writes there."""
    return list(Path(folder).rglob(f".*{_TEMPORARY}"))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
