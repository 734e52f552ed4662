"""What seeds say of a difference: paired intervals, corrections for many comparisons, how many seeds it takes.

Seed s trains the base and the design on the same images in the same order, so what is compared is d_s, the design's
figure less the base's, and not two means. Nothing here needs torch or scipy.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from convattn.ablation.student_t import t_quantile, two_sided_p

__all__ = [
    "LEAST_FOR_BOOTSTRAP",
    "Interval",
    "bootstrap_interval",
    "holm",
    "mcnemar",
    "paired_differences",
    "paired_interval",
    "seeds_needed",
]

LEAST_FOR_BOOTSTRAP = 10  # seeds; with five the interval is too narrow
_CONFIDENCE = 0.95  # of every interval
_RESAMPLES = 10_000
_ROUNDING = 1e-9  # of figures with few digits: differences that are equal
_POWER = 2.8  # 1.96 + 0.84: 5 % in error, 80 % found


@dataclass(frozen=True)
class Interval:
    """A mean difference and where it may lie, at 95 %."""

    mean: float
    low: float
    high: float
    deviation: float  # of the differences from seed to seed
    count: int  # seeds
    p: float | None  # two-sided; None where the kind has none

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2

    @property
    def is_decided(self) -> bool:
        """Whether 0 lies outside."""
        return not self.low <= 0 <= self.high


def paired_differences(base: Mapping[int, float], design: Mapping[int, float]) -> tuple[float, ...]:
    """The design's figure less the base's, each by seed, for each seed that has both, by rising seed."""
    return tuple(design[seed] - base[seed] for seed in sorted(base.keys() & design.keys()))


def paired_interval(differences: Sequence[float], *, test_over_train: float | None = None) -> Interval:
    """The paired t interval: mean ± t · s · √(1/n), and its p; that of the sign test where all differences are equal.

    Args:
        differences: one a seed, two or more.
        test_over_train: where each seed draws its own split of the same images: tested images over training images.
            The runs then share images, and the variance is taken (1/n + this) times instead of 1/n.

    Raises:
        ValueError: for fewer than two.

    Source: Nadeau and Bengio, Inference for the generalization error, 2003, for resampled splits.
    """
    if len(differences) < 2:
        raise ValueError(f"{len(differences)} seeds say nothing of the spread; take two or more, five to begin with")
    count, middle, deviation = len(differences), fmean(differences), stdev(differences)
    if deviation < _ROUNDING * max(1.0, abs(middle)):
        deviation = 0.0
    error = deviation * math.sqrt(1 / count + (test_over_train or 0.0))
    half = t_quantile(_CONFIDENCE, count - 1) * error
    if not middle:
        p = 1.0
    elif error:
        p = two_sided_p(middle / error, count - 1)
    else:  # coarse figures; what is sure is that all differences have one sign
        p = 2.0 ** (1 - count)
    return Interval(middle, middle - half, middle + half, deviation, count, p)


def bootstrap_interval(differences: Sequence[float]) -> Interval:
    """The interval of the means of ten seeds or more, drawn anew with replacement (percentiles of 10,000 draws)."""
    if len(differences) < LEAST_FOR_BOOTSTRAP:
        raise ValueError(
            f"{len(differences)} seeds make a bootstrap interval too narrow; take {LEAST_FOR_BOOTSTRAP} or more"
        )
    draw = random.Random(0)
    means = sorted(fmean(draw.choices(differences, k=len(differences))) for _ in range(_RESAMPLES))
    outside = round((1 - _CONFIDENCE) / 2 * _RESAMPLES)
    low, high = means[outside], means[-1 - outside]
    return Interval(fmean(differences), low, high, stdev(differences), len(differences), None)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down: the p of each of several comparisons, raised for their number; in the order given.

    The i-th smallest of m is taken m - i + 1 times, is no smaller than the one before it, and at most 1.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def seeds_needed(deviation: float, difference: float) -> int:
    """How many paired seeds find a difference four times out of five, at 5 %: (2.8 · deviation / difference)² + 2.

    Args:
        deviation: of the paired differences from seed to seed.
        difference: to be found, in the same unit, above 0.

    Raises:
        ValueError: for a difference that is not above 0.
    """
    if difference <= 0:
        raise ValueError(f"difference {difference} must be above 0")
    return math.ceil((_POWER * deviation / difference) ** 2 + 2 - 1e-9)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p that two fixed networks are equally often right on the images where one alone is.

    It says nothing of training again: another seed gives another pair of networks.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    if not count:
        return 1.0
    tail = sum(math.comb(count, wrong) for wrong in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**count))
