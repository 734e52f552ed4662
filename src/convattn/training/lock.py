"""One run in a folder at a time: a lock on a file in it, which the system takes back however its process ends."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from convattn.config_errors import RunFolderError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK_NAME", "FolderLock"]

LOCK_NAME = ".lock"

_held: set[Path] = set()  # by this process, whose own locks do not keep it out


class FolderLock:
    """Within this context no other run may write into `folder`, which is created if need be, and goes again if empty.

    A lock of POSIX's kind: workers do not inherit it, so it goes with the process that trains, by SIGKILL too, and
    network file systems know it. Where it cannot be had, `problem` says why, and the run goes on without; whether the
    folder is still there is seen all the same.

    Args:
        folder: the run folder.
        wanted: False in processes that write nothing there.

    Raises:
        RunFolderError: on entering, if another run holds it.
    """

    def __init__(self, folder: Path, *, wanted: bool = True):
        self.problem: str | None = None
        self._folder, self._wanted = folder, wanted
        self._file: int | None = None  # the one that is locked, or the folder where none can be
        self._is_locked = False
        self._key = folder.resolve()
        self._created: list[Path] = []  # folders, the innermost first

    def __enter__(self) -> Self:
        if self._wanted:
            try:
                self._lock()
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN) and self._file is not None:
                    self._leave()
                    raise RunFolderError(self._in_use()) from None
                self._leave()
                self.problem = f"{self._folder}: cannot be locked ({error.strerror}); let no other run write there"
                with suppress(OSError):  # it cannot be written either, which the run will say
                    self._file = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_locked and self.is_there():
            (self._folder / LOCK_NAME).unlink(missing_ok=True)
        else:
            self._created.clear()  # what stands there now is somebody else's
        self._leave()

    def check(self) -> None:
        """Raises FileNotFoundError if the folder was removed, or another one is in its place."""
        if self._file is not None and not self.is_there():
            text = "the output folder was removed or replaced while the run wrote into it"
            raise FileNotFoundError(errno.ENOENT, text, str(self._folder))

    def is_there(self) -> bool:
        """Whether the file at the lock's path is the one that is locked; without a lock, the folder that of before."""
        assert self._file is not None
        try:
            place = self._folder / LOCK_NAME if self._is_locked else self._folder
            return os.path.samestat(os.fstat(self._file), os.stat(place))
        except OSError:
            return False

    def _lock(self) -> None:
        if self._key in _held:
            raise RunFolderError(self._in_use())
        folder = self._folder
        while not folder.exists():
            self._created.append(folder)
            folder = folder.parent
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_locked = True
            if self.is_there():  # not one that its owner has just removed
                break
            os.close(self._file)
            self._file, self._is_locked = None, False
        _held.add(self._key)

    def _leave(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            if self._is_locked:
                _held.discard(self._key)
            self._is_locked = False
        for folder in self._created:
            try:
                folder.rmdir()
            except OSError:  # the run is in it
                break

    def _in_use(self) -> str:
        return (
            f"{self._folder}: another run is writing into this folder; wait for its end, stop it, or choose another "
            "--output"
        )
