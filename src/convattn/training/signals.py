"""Stopping on Ctrl-C or SIGTERM at a point where nothing is lost."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Self

__all__ = ["StopRequest"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within this context the first Ctrl-C or SIGTERM sets `number`, and a later one acts as it always did.

    One stop may send the signal twice: `timeout` sends it to its child and to the group, and torchrun passes on what it
    received itself. So for a second, or ten below torchrun, it counts once.

    Outside the main thread, where Python takes no signals, it never sets anything.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal
        self._since = 0.0
        self._once = 10.0 if "TORCHELASTIC_RUN_ID" in os.environ else 1.0  # seconds
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    @property
    def received(self) -> bool:
        """Whether a stop was asked for."""
        return self.number is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > self._once:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
