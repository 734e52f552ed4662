"""Exponents against power laws, and series out of a table."""

import numpy as np
import pytest
from scipy.stats import linregress

from convattn.bench.growth import fit_exponent, growth_of, growth_settings
from convattn.bench.latency import Latency
from convattn.bench.runtimes import Setting
from convattn.bench.table import BenchmarkRow, BenchmarkTable


def test_a_power_law_is_found_exactly():
    fit = fit_exponent([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)])
    assert fit.value == pytest.approx(1.5)
    assert fit.standard_error == pytest.approx(0, abs=1e-9)


def test_the_standard_error_is_that_of_least_squares():
    xs, ys = np.array([1, 2, 4, 8, 16.0]), np.array([1.1, 1.9, 4.5, 7.3, 17.0])
    line = linregress(np.log(xs), np.log(ys))
    fit = fit_exponent(list(xs), list(ys))
    assert fit.value == pytest.approx(line.slope)
    assert fit.standard_error == pytest.approx(line.stderr)


def test_settings_are_two_series():
    found = [(one.image_size, one.batch_size) for one in growth_settings([224, 384], [1, 4, 16], "fp32")]
    assert found == [(224, 1), (384, 1), (224, 4), (224, 16)]


def test_series_are_found_in_a_table():
    def row(size, batch, milliseconds, peak):
        setting = Setting(batch_size=batch, image_size=size)
        latency = Latency("x", milliseconds, 0, 0, 0, 5, None)
        return BenchmarkRow("m", "fused", setting, "", 1000, size**2, latency, peak)

    rows = [row(size, 1, size**2 / 1e3, 4000 + size**2) for size in (100, 200, 400)]
    rows += [row(100, batch, 10 * batch**0.5, None) for batch in (4, 16)]
    sizes, batches = growth_of(BenchmarkTable(tuple(rows), {}))
    assert (sizes.over, sizes.at) == ("pixels", (100, 200, 400))
    assert [sizes.time.value, sizes.macs.value, sizes.memory.value] == pytest.approx([1, 1, 1])
    assert (batches.over, batches.at, batches.memory) == ("batch", (1, 4, 16), None)
    assert [batches.time.value, batches.macs.value] == pytest.approx([0.5, 1])
    assert growth_of(BenchmarkTable(tuple(rows[:2]), {})) == []


def test_what_has_no_exponent_is_refused():
    with pytest.raises(ValueError, match="2 points; an exponent with an error needs 3"):
        fit_exponent([1, 2], [1, 2])
    with pytest.raises(ValueError, match="0 has no logarithm"):
        fit_exponent([1, 2, 3], [1, 0, 2])
