"""What counts as one stop, and what as a second."""

import signal
from types import SimpleNamespace

import pytest

from convattn.training import signals
from convattn.training.signals import StopRequest


@pytest.mark.parametrize(("below_torchrun", "once"), [(False, 1.0), (True, 10.0)])
def test_a_signal_counts_once_for_a_while_and_then_acts_as_ever(monkeypatch, below_torchrun, once):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if below_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests started in the background ignore
    try:
        with StopRequest() as stop:
            assert not stop.received
            signal.raise_signal(signal.SIGTERM)
            now.seconds += once
            signal.raise_signal(signal.SIGINT)
            assert (stop.received, stop.number) == (True, signal.SIGTERM)
            now.seconds += 0.1
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
