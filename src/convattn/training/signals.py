"""Stopping on Ctrl-C or SIGTERM at a point where nothing is lost."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

__all__ = ["StopRequest"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within this context the first Ctrl-C or SIGTERM sets `number`, and a second one acts at once as it always did.

    Outside the main thread, where Python takes no signals, it never sets anything.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def received(self) -> bool:
        """Whether a stop was asked for."""
        return self.number is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
