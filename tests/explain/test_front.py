from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from convattn.explain.figures import as_picture
from convattn.explain.front import Point, draw_front, front_of, points_of


def test_the_front():
    points = [Point("slow", 4, 80), Point("cheap", 1, 70), Point("beaten", 3, 74), Point("good", 2, 75)]
    assert [one.name for one in front_of(points)] == ["cheap", "good", "slow"]
    assert front_of([]) == []


def test_equal_points():
    twins = [Point("a", 1, 70), Point("b", 1, 70)]
    assert front_of(twins) == twins
    assert front_of([Point("dear", 2, 70), Point("cheap", 1, 70)]) == [Point("cheap", 1, 70)]
    assert front_of([Point("worse", 1, 60), Point("better", 1, 70)]) == [Point("better", 1, 70)]


@dataclass
class Row:
    model: str
    runtime: str
    top1: float | None
    macs: int | None = 2 * 10**9
    parameters: int | None = 3 * 10**6

    @property
    def latency(self):
        return SimpleNamespace(median_ms=5.0)


def test_rows_of_a_benchmark():
    table = SimpleNamespace(rows=(Row("a", "eager", 80.0), Row("b", "eager", None), Row("c", "eager", None, macs=None)))
    assert points_of(table) == [Point("a", 5.0, 80.0, is_published=True)]
    assert points_of(table, "macs", {"b": 60.0, "c": 50.0}) == [Point("a", 2, 80, True), Point("b", 2, 60)]
    assert points_of(table, "parameters", {"a": 70.0}) == [Point("a", 3, 70)]
    two = SimpleNamespace(rows=(Row("a", "eager", 80.0), Row("a", "fused", 80.0)))
    assert [one.name for one in points_of(two)] == ["a, eager", "a, fused"]
    assert as_picture(draw_front(points_of(two))).size == (540, 380)
    with pytest.raises(ValueError, match=r"^cost 'watts' is unknown; known: latency, macs, parameters$"):
        points_of(table, "watts")
    with pytest.raises(ValueError, match=r"^no row has an accuracy, published or measured; give measured="):
        points_of(SimpleNamespace(rows=(Row("b", "eager", None),)))
