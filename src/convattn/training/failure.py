"""When one of several processes fails, the others end at once instead of waiting for it."""

import os
import sys
import threading
import time
from types import TracebackType
from typing import Self

import torch
from torch.distributed import DistError
from torch.distributed.distributed_c10d import _get_default_store

from convattn.shown import shown

__all__ = ["EndTogether"]

_EVERY = 0.5  # seconds between two looks
_FAILED, _HEARD = "convattn/failed", "convattn/heard"  # keys of the store in which the processes found one another
_PATIENCE = 5.0  # seconds that the process with the store stays for the others


class EndTogether:
    """Within this context an error in one process ends all: those that wait for it in an exchange cannot by themselves.

    What was being written then is as after SIGKILL: unfinished, under another name. Nothing happens with one process.

    Args:
        rank: of this process.
        count: how many train together.
    """

    def __init__(self, rank: int, count: int):
        self._rank, self._count = rank, count
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._count > 1 and torch.distributed.is_initialized():
            self._store = _get_default_store()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._done.set()
        self._thread.join()
        if not isinstance(error, Exception):  # a stop, in which all agree
            return
        first = None
        try:
            if isinstance(error, RuntimeError) and self._store.check([_FAILED]):  # of an exchange that another one left
                first = self._store.get(_FAILED).decode(errors="replace")
            else:
                self._tell(" ".join(str(error).split()) or type(error).__name__)
        except DistError:  # the process with the store has gone before
            return
        if first is not None:
            raise RuntimeError(f"ended, because {first}") from None

    def _tell(self, message: str) -> None:
        self._store.set(_FAILED, f"process {self._rank} failed: {message}")
        deadline = time.monotonic() + _PATIENCE
        holds_store = self._rank == 0 and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
        while holds_store and self._store.add(_HEARD, 0) < self._count - 1 and time.monotonic() < deadline:
            time.sleep(0.01)

    def _watch(self) -> None:
        try:
            while not self._done.wait(_EVERY):
                if self._store.check([_FAILED]):
                    self._end(self._store.get(_FAILED).decode(errors="replace"))
        except DistError:  # the process with the store has ended, and the next exchange will fail
            return

    def _end(self, why: str) -> None:
        self._store.add(_HEARD, 1)
        if self._rank == 0:
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which the progress bar hid
            print(f"{cursor}convattn train: ended, because {shown(why)}", file=sys.stderr, flush=True)
        os._exit(1)
