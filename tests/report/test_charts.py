import math

import pytest

from convattn.classification.options import METRICS
from convattn.page import Curve, Epoch, Plot, RunCurves, epochs_from_log
from convattn.report.charts import comparison_curves, learning_curves, plotted, run_style, ticks
from convattn.task import Metric


def curves(epochs):
    """The charts of a classifier."""
    return learning_curves(epochs, METRICS)


def epoch(number, train_loss=None, val_loss=None, top1=None, lr=None, images_per_second=None, seconds=None):
    """A point of the curves of a classifier."""
    figures = dict(train_loss=train_loss, val_loss=val_loss, top1=top1, lr=lr)
    return Epoch(number, None, figures | dict(images_per_second=images_per_second, seconds=seconds))


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 1.83, [0, 0.5, 1, 1.5, 2]),
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (93.2, 100, [92, 94, 96, 98, 100]),
        (5, 5, [5, 6]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0021, 0.0049, [0.002, 0.003, 0.004, 0.005]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, want):
    got = ticks(low, high)
    if low != high:
        assert got == pytest.approx(want)
        assert got[0] <= low
        assert got[-1] >= high
    assert 2 <= len(got) <= 7
    assert got[0] < got[-1]


def test_lines_are_where_the_values_are():
    loss, accuracy = curves([epoch(1, 2.0, 1.0, 0.0), epoch(2, 1.0, 0.5, 50.0), epoch(3, 0.0, 0.75, 100.0)])
    training, validation = loss.lines
    assert training.path == "M0.0 0.0h0L50.0 50.0L100.0 100.0"
    assert validation.path == "M0.0 50.0h0L50.0 75.0L100.0 62.5"
    assert validation.end == (100.0, 62.5)
    assert (validation.last, validation.best) == ("0.750", "0.500 in epoch 2")
    assert loss.y_ticks == ((0, "0"), (25, "0.5"), (50, "1"), (75, "1.5"), (100, "2"))
    assert loss.x_ticks == ((0, "1"), (50, "2"), (100, "3"))
    assert accuracy.description == "Top-1 over epochs. Top-1: last 100.00 %, best 100.00 % in epoch 3."


def test_what_was_not_measured_is_left_out():
    assert curves([]) == []
    assert curves([epoch(1)]) == []
    (loss,) = curves([epoch(1, 1.0), epoch(2, math.nan), epoch(3, 0.5)])
    assert [line.name for line in loss.lines] == ["training"]
    assert loss.lines[0].path == "M0.0 0.0h0L100.0 50.0"


def test_one_epoch_is_a_point_in_the_middle():
    loss, _ = curves([epoch(7, 1.0, 0.5, 50.0)])
    assert loss.lines[0].path == "M50.0 0.0h0"
    assert loss.x_ticks == ((50.0, "7"),)


def test_curves_from_a_log():
    entry = {"epoch": 3, "step": 9, "train_loss": 1.5, "top1": 50.0, "top5": 90.0, "lr": 0.1, "seconds": 2.0}
    entry["images_per_second"] = 7.0
    assert epochs_from_log([entry]) == (Epoch(3, 9, entry),)


def test_learning_rate_and_speed_have_charts_of_their_own():
    rate, speed = curves([epoch(1, lr=0.5, images_per_second=100), epoch(2, lr=1.0, images_per_second=50)])
    assert (rate.title, rate.lines[0].path) == ("Learning rate", "M0.0 50.0h0L100.0 0.0")
    assert (speed.title, speed.lines[0].path) == ("Images per second", "M0.0 0.0h0L100.0 50.0")
    assert speed.description == "Images per second over epochs. training: last 50, best 100 in epoch 1."


def test_the_best_of_an_error_is_the_lowest_wherever_it_is_drawn():
    error = Metric("mae", "Error", "px", greater_is_better=False, digits=1, lowest=0.0)
    epochs = [Epoch(number, None, {"mae": value}) for number, value in ((1, 4.0), (2, 2.0), (3, 3.0))]
    (chart,) = learning_curves(epochs, (error,))
    assert chart.description == "Error over epochs. Error: last 3.0 px, best 2.0 px in epoch 2."
    assert (chart.y_ticks[0], chart.lines[0].path) == ((0.0, "0 px"), "M0.0 0.0h0L50.0 50.0L100.0 25.0")
    (compared,) = comparison_curves([RunCurves("a", tuple(epochs), (error,))])
    assert compared.lines[0].best == "2.0 px in epoch 2"


def test_runs_share_the_axes_of_their_charts():
    short = RunCurves("short", (epoch(1, 3.0, 4.0, 50.0), epoch(2, 2.0, 3.0, 60.0)), METRICS)
    long = RunCurves("long", (epoch(1, 3.0, 3.5, 50.0), epoch(2, 2.5, 3.0, 60.0), epoch(3, 2.0, 2.0, 70.0)), METRICS)
    accuracy, validation, training = comparison_curves([short, RunCurves("new", ()), long])
    assert [line.name for line in accuracy.lines] == ["short", "long"]
    assert [line.style for line in accuracy.lines] == ["run0", "run2"]
    assert accuracy.lines[0].path == "M0.0 100.0h0L50.0 50.0"
    assert accuracy.lines[1].path == "M0.0 100.0h0L50.0 50.0L100.0 0.0"
    assert [line.path for line in validation.lines] == ["M0.0 0.0h0L50.0 50.0", "M0.0 25.0h0L50.0 50.0L100.0 100.0"]
    assert training.title == "Training loss"
    assert comparison_curves([]) == comparison_curves([RunCurves("new", ())]) == []


def test_24_runs_look_different():
    assert len({run_style(index) for index in range(24)}) == 24
    assert run_style(9) == "run1 dashed"


def test_a_small_difference_does_not_fill_its_axis():
    def labels(*top1s):
        runs = [RunCurves(str(top1), (epoch(1, top1=top1),), METRICS) for top1 in top1s]
        (chart,) = comparison_curves(runs)
        return chart.y_ticks[0][1], chart.y_ticks[-1][1]

    assert labels(82.2, 82.5) == ("81 %", "83.5 %")
    assert labels(99.8, 99.9) == ("98 %", "100 %")  # within what there can be
    assert labels(0.1, 0.3) == ("0 %", "2 %")
    assert labels(50.0, 60.0) == ("50 %", "60 %")
    (loss,) = comparison_curves([RunCurves("a", (epoch(1, 2.0), epoch(2, 2.001)))])
    assert (loss.y_ticks[0][1], loss.y_ticks[-1][1]) == ("1.98", "2.03")


def test_every_epoch_can_be_read_off():
    loss, accuracy = curves([epoch(1, 2.0, 1.0, 10.0), epoch(2, 1.0), epoch(5, 0.5, 0.75, 30.0)])
    assert [(one.at, one.place, one.width) for one in loss.readings] == [
        ("1", 0.0, 12.5),
        ("2", 25.0, 50.0),
        ("5", 100.0, 37.5),
    ]
    assert [[(line.name, value) for line, value in one.values] for one in loss.readings] == [
        [("training", "2.000"), ("validation", "1.000")],
        [("training", "1.000")],
        [("training", "0.500"), ("validation", "0.750")],
    ]
    assert [(one.at, [value for _, value in one.values]) for one in accuracy.readings] == [
        ("1", ["10.00 %"]),
        ("5", ["30.00 %"]),
    ]
    (many,) = curves([epoch(number, 1.0) for number in range(1, 1001)])
    assert len(many.readings) == 100
    assert (many.readings[0].at, many.readings[-1].at) == ("1", "1000")
    assert sum(one.width for one in many.readings) == pytest.approx(100, abs=0.1)


def test_a_plot_of_shares_has_the_whole_of_both():
    falling = Curve("cat", ((0, 100.0), (50, 75.0)), "AP 40 %")
    chart = plotted(Plot("Boxes", "recall", (falling, Curve("bee", ()), Curve("dog", ((0, 0.0),), "AP 0 %"))))
    assert [(line.name, line.last, line.style) for line in chart.lines] == [
        ("cat", "AP 40 %", "run0"),
        ("dog", "AP 0 %", "run2"),
    ]
    assert chart.lines[0].path == "M0.0 0.0h0L50.0 25.0"
    assert (chart.x_ticks[0], chart.x_ticks[-1]) == ((0.0, "0 %"), (100.0, "100 %"))
    assert (chart.y_ticks[0], chart.y_ticks[-1]) == ((0.0, "0 %"), (100.0, "100 %"))
    assert [(one.at, [value for _, value in one.values]) for one in chart.readings] == [
        ("0 %", ["100.0 %", "0.0 %"]),
        ("50 %", ["75.0 %"]),
    ]
    assert chart.description == "Boxes, over the recall: cat AP 40 %, dog AP 0 %."
    assert plotted(Plot("All", "score", (falling,), is_score=True)).readings[1].at == "0.5"
    assert plotted(Plot("None", "recall", (Curve("bee", ()),))) is None
