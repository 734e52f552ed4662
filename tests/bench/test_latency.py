"""The stopwatch: order, counts and statistics; never a speed."""

import time

import pytest

from convattn.bench.latency import Interrupted, measure_latency


def test_candidates_take_turns():
    calls = []
    rows = measure_latency({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert [(row.name, row.repeats) for row in rows] == [("a", 3), ("b", 3)]


def test_behind_a_rest_comes_an_untimed_call(monkeypatch):
    calls, rests = [], []
    monkeypatch.setattr(time, "sleep", rests.append)
    rows = measure_latency({"a": lambda: calls.append("a")}, repeats=3, warmup=1, rest=0.5)
    assert rests == [0.5] * 3
    assert (len(calls), rows[0].repeats) == (1 + 2 * 3, 3)


def test_median_and_spread_of_a_known_clock(monkeypatch):
    durations = iter([5.0, 0.001, 0.002, 0.003, 0.004, 0.1])  # the first is the warm-up
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(durations)

    (row,) = measure_latency({"x": call}, repeats=5, warmup=1)
    assert row.median_ms == pytest.approx(3)
    assert row.p10_ms == pytest.approx(1)
    assert row.p90_ms == pytest.approx(100)
    assert row.p95_ms == pytest.approx(100)


def test_what_was_timed_before_ctrl_c_is_not_lost():
    turns = []

    def call():
        turns.append("b")
        if len(turns) == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        measure_latency({"a": lambda: None, "b": call}, repeats=9, warmup=0)
    assert [(row.name, row.repeats) for row in stopped.value.measured] == [("a", 3), ("b", 2)]


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="repeats 0 must be 1 or more"):
        measure_latency({}, repeats=0)
