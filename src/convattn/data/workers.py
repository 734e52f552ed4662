"""What every loader here tells PyTorch's about its worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["starting_workers", "worker_options"]

_STOPS = {signal.SIGINT, signal.SIGTERM}
_EVERY = 5.0  # seconds between two looks for the main process


def worker_options(workers: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Keywords of `torch.utils.data.DataLoader` for so many worker processes (0 loads in this one) and a device."""
    return {
        "num_workers": workers,
        "worker_init_fn": _leave_signals_to_the_main_process,
        "pin_memory": torch.device(device).type == "cuda",
        # One of its own: starting an iterator draws from it, and must not disturb the state that training goes by.
        "generator": torch.Generator(),
    }


@contextmanager
def starting_workers() -> Iterator[None]:
    """Workers that are forked within this context hear no Ctrl-C or SIGTERM before they know what to do with it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A signal to the whole group (Ctrl-C, `timeout`, a scheduler) is the main process's, which then ends its workers.

    Its own SIGTERM, by which it ends one that is stuck, still counts.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigtimedwait"):  # macOS, Windows
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # SIGTERM is taken by the thread below alone
    main = multiprocessing.parent_process()
    if main is not None and main.pid is not None:
        threading.Thread(target=_obey, args=(main.pid,), daemon=True).start()


def _obey(main: int) -> None:
    """End this worker when the main process says so, or is gone: PyTorch's own watch misses one that went too early."""
    while True:
        received = signal.sigtimedwait({signal.SIGTERM}, _EVERY)
        if received is not None and received.si_pid == main:
            os._exit(0)
        try:
            os.kill(main, 0)
        except ProcessLookupError:
            os._exit(1)
