"""When one of several processes fails, the others end at once instead of waiting for it, and one of them tells."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store

from convattn.shown import reason, shown

__all__ = ["EndTogether", "telling"]

_EVERY = 0.5  # seconds between two looks
_FAILED, _HEARD = "convattn/failed", "convattn/heard"  # keys of the store in which the processes found one another
_TELLER, _TOLD = "convattn/teller", "convattn/told"  # with the number of torchrun's attempt behind them
_PATIENCE = 5.0  # seconds that the process with the store stays for the others, and these for the one that tells


class EndTogether:
    """Within this context an error in one process ends all: those that wait for it in an exchange cannot by themselves.

    What was being written then is as after SIGKILL: unfinished, under another name. Nothing happens with one process.
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
                self._tell(reason(error))
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
        if self._rank == 0 and sys.stderr.isatty():
            print("\x1b[?25h", end="", file=sys.stderr, flush=True)  # the cursor, which the progress bar hid
        with telling() as first:
            if first:
                print(f"convattn train: ended, because {shown(why)}", file=sys.stderr, flush=True)
        os._exit(1)


@contextmanager
def telling() -> Iterator[bool]:
    """Whether this process tells the user of an error: the first that asks, of those that were started together.

    All may meet the same one, before they have found one another too. The others leave this context when it is told,
    for the end of one is the end of all. Where nobody can be asked, each tells.
    """
    store, first = None, True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with suppress(RuntimeError, ValueError, KeyError):  # the store has gone, or these are no variables of torchrun
        store = _meeting_point()
        first = store is None or store.add(f"{_TELLER}/{attempt}", 1) == 1
    try:
        yield first
    finally:
        with suppress(RuntimeError):
            if store is not None and first:
                store.set(f"{_TOLD}/{attempt}", "yes")
            elif store is not None:
                store.wait([f"{_TOLD}/{attempt}"], timedelta(seconds=_PATIENCE))


def _meeting_point() -> Store | None:
    """The store in which the processes find one another; None where there is one process, or none can be reached."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        place, patience = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timedelta(seconds=_PATIENCE)
        return TCPStore(*place, is_master=False, timeout=patience, wait_for_workers=False)
    return _get_default_store() if torch.distributed.is_initialized() else None
