import math
import random

import pytest

from convattn.ablation.sentence import amount, sentence, time_in_words
from convattn.ablation.statistics import (
    bootstrap_interval,
    holm,
    mcnemar,
    paired_differences,
    paired_interval,
    seeds_needed,
)
from convattn.ablation.student_t import t_quantile, two_sided_p
from convattn.task import Metric

TOP1 = Metric("top1", "Top-1", "%")
LOSS = Metric("error", "Error", "", greater_is_better=False)


@pytest.mark.parametrize(("deviation", "difference", "seeds"), [(0.5, 1, 4), (0.5, 0.5, 10), (0.5, 0.3, 24)])
def test_seeds_needed(deviation, difference, seeds):
    assert seeds_needed(deviation, difference) == seeds


def test_two_seeds_are_the_least_that_are_needed():
    assert seeds_needed(0.0, 0.5) == 2
    with pytest.raises(ValueError, match="difference 0 must be above 0"):
        seeds_needed(0.5, 0)


def test_holm():
    assert holm((0.01, 0.04, 0.03, 0.005)) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm((0.6, 0.9)) == (1.0, 1.0)
    assert holm(()) == ()


def test_t_at_known_places():
    assert t_quantile(0.95, 1) == pytest.approx(12.706204736, rel=1e-9)
    assert t_quantile(0.95, 4) == pytest.approx(2.776445105, rel=1e-9)
    assert two_sided_p(1.0, 1) == pytest.approx(0.5)  # Cauchy
    assert two_sided_p(0.0, 7) == 1
    assert two_sided_p(math.inf, 7) == 0
    with pytest.raises(ValueError, match="0 degrees of freedom must be 1 or more"):
        two_sided_p(1.0, 0)


def test_t_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 4, 9, 30, 200):
        assert t_quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-10)
        for t in (0.01, 0.7, 2.5, 30.0):
            assert two_sided_p(-t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9)


def test_paired_interval_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    base, design = [70.1, 70.9, 69.8, 70.4, 70.2], [70.9, 71.0, 70.9, 71.1, 70.6]
    differences = [d - b for b, d in zip(base, design, strict=True)]
    found, want = paired_interval(differences), stats.ttest_rel(design, base)
    assert found.p == pytest.approx(want.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(want.confidence_interval(0.95)))
    assert found.is_decided
    assert found.count == 5


def test_corrected_interval_is_wider_by_the_share_of_tested_images():
    plain = paired_interval([1.0, 2.0, 4.0])
    corrected = paired_interval([1.0, 2.0, 4.0], test_over_train=0.25)
    assert corrected.half_width / plain.half_width == pytest.approx(math.sqrt((1 / 3 + 0.25) * 3))
    assert corrected.p > plain.p


def test_equal_differences():
    assert paired_interval([0.0, 0.0]).p == 1
    assert not paired_interval([0.0, 0.0]).is_decided
    same = paired_interval([0.5, 0.5, 0.5])
    assert paired_interval([70.3 - 69.8, 60.3 - 59.8]).p == 0.5
    assert (same.p, same.low, same.high) == (0.25, 0.5, 0.5)


def test_seeds_are_paired_by_number():
    assert paired_differences({0: 1.0, 2: 3.0, 1: 2.0}, {1: 2.5, 0: 1.0, 7: 9.0}) == (0.0, 0.5)


@pytest.mark.parametrize("differences", [[], [1.0]])
def test_one_seed_has_no_interval(differences):
    with pytest.raises(ValueError, match="seeds say nothing of the spread; take two or more"):
        paired_interval(differences)


def test_bootstrap():
    draw = random.Random(1)
    differences = [draw.gauss(1, 1) for _ in range(40)]
    found, by_t = bootstrap_interval(differences), paired_interval(differences)
    assert found.low == pytest.approx(by_t.low, abs=0.06)
    assert found.high == pytest.approx(by_t.high, abs=0.06)
    assert found == bootstrap_interval(differences)
    with pytest.raises(ValueError, match="9 seeds make a bootstrap interval too narrow; take 10 or more"):
        bootstrap_interval(differences[:9])


def test_mcnemar():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    stats = pytest.importorskip("scipy.stats")
    assert mcnemar(12, 30) == pytest.approx(stats.binomtest(12, 42).pvalue)


def test_sentence_of_no_difference():
    found = paired_interval([0.0, 0.5, -0.5, 0.75, -0.75])
    text = sentence("se", "none", TOP1, found, adjusted_p=found.p, worth=0.5, seconds_a_seed=600)
    assert text == (
        "no difference found between se and none at this budget (+0.00 points, -0.79 to +0.79; 5 seeds); "
        "to see 0.5 points you need 15 seeds, about 1.7 h more here"
    )
    enough = sentence("se", "none", TOP1, paired_interval([0.01, -0.01] * 3), adjusted_p=1, worth=0.5)
    few = sentence("se", "none", TOP1, paired_interval([0.0, 0.0]), adjusted_p=1, worth=0.5)
    assert few.endswith("to see 0.5 points you need 5 seeds")
    assert enough.endswith("enough seeds to see 0.5 points four times out of five")


def test_sentence_of_a_difference():
    found = paired_interval([1.0, 1.1, 0.9, 1.0, 1.2])
    text = sentence("das", "none", TOP1, found, adjusted_p=0.001, worth=0.5)
    assert text.startswith("das is better than none (+1.04 points, +0.90 to +1.18; 5 seeds, p 0.001 after Holm)")
    assert sentence("das", "none", LOSS, found, adjusted_p=0.001, worth=0.5).startswith("das is worse than none")
    assert "no difference found" in sentence("das", "none", TOP1, found, adjusted_p=0.06, worth=0.5)
    assert "less than the 5 points that matter" in sentence("das", "none", TOP1, found, adjusted_p=0.001, worth=5)


def test_words():
    assert amount(1, TOP1) == "1 point"
    assert amount(0.02, LOSS) == "0.02 Error"
    assert [time_in_words(s) for s in (40, 720, 12_240, 181_440)] == ["40 s", "12 min", "3.4 h", "2.1 days"]
