"""A place beside a file's own in which a new one is made and proven, before it takes the old one's place."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["move_in", "require_space", "staging"]


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A temporary folder in the folder of `path`, which is created if need be; both go if nothing was moved in.

    Raises:
        OSError: naming `path` and the cause, if nothing can be written there.
    """
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # By its ending `atomic.unfinished` finds what a killed process left.
            folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".writing", dir=path.parent)
        except FileExistsError:
            raise _unwritable(path, NotADirectoryError(errno.ENOTDIR, f"{path.parent} is no folder")) from None
        except OSError as error:
            raise _unwritable(path, error) from None
        with folder as name:
            yield Path(name)
    finally:
        for folder_made in missing:
            with suppress(OSError):  # the file is in it
                folder_made.rmdir()


def require_space(path: Path, folder: Path, needed: int) -> None:
    """Make sure that about `needed` bytes are free in `folder`, for the file that is to be `path`; OSError if not."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        cause = f"it takes about {needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} are free"
        raise _unwritable(path, OSError(errno.ENOSPC, cause))


def move_in(folder: Path, names: list[str], path: Path) -> None:
    """Move these entries of `folder` beside `path`, in the place of what has their names; that of `path` comes last.

    A file is replaced in one step. A folder cannot be: for a moment there is none of its name.

    Raises:
        OSError: naming `path` and the cause; what was there before is there again.
    """
    older = Path(tempfile.mkdtemp(prefix="older-", dir=folder))
    moved: list[Path] = []
    try:
        for name in sorted(names, key=lambda name: name == path.name):
            target = path.with_name(name)
            if target.is_dir() and not (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{target} is a folder")
            moved.append(target)
            if target.is_dir():
                os.rename(target, older / name)
            elif target.exists():
                _keep(target, older / name)
            os.replace(folder / name, target)
    except BaseException as error:
        for target in moved:
            _restore(target, older / target.name, folder / target.name)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from None
        raise


def _keep(file: Path, older: Path) -> None:
    try:
        os.link(file, older)
    except OSError:  # not on every file system
        shutil.copy2(file, older)


def _restore(target: Path, older: Path, unmoved: Path) -> None:
    """Undo the move of one entry."""
    if not unmoved.exists():
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    if older.exists():
        os.replace(older, target)


def _unwritable(path: Path, error: OSError) -> OSError:
    return OSError(error.errno, f"could not be written: {error.strerror}", str(path))
