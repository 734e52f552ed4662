"""The result of a comparison in a sentence that a person can use."""

from convattn.ablation.statistics import Interval, seeds_needed
from convattn.task import Metric

__all__ = ["amount", "sentence", "time_in_words"]

_LEVEL = 0.05
_TO_BEGIN_WITH = 5  # seeds


def sentence(
    design: str,
    base: str,
    metric: Metric,
    found: Interval,
    *,
    adjusted_p: float,
    worth: float,
    seconds_a_seed: float | None = None,
) -> str:
    """Whether there is a difference, how large, and if none was found what it takes to see one.

    Args:
        found: the interval of design less base.
        adjusted_p: after Holm, over all comparisons of the table.
        worth: the smallest difference that matters, in the metric's unit.
        seconds_a_seed: what one more seed of the base and all designs takes here; None where it is not known.
    """
    interval = f"{_signed(found.mean)} {_unit(metric, 2)}, {_signed(found.low)} to {_signed(found.high)}"
    if adjusted_p < _LEVEL and found.is_decided:
        is_better = (found.mean > 0) is metric.greater_is_better
        smaller = "" if abs(found.mean) >= worth else f", less than the {amount(worth, metric)} that matter"
        return (
            f"{design} is {'better' if is_better else 'worse'} than {base} ({interval}; {found.count} seeds, "
            f"p {adjusted_p:.3f} after Holm){smaller}"
        )
    needed = seeds_needed(found.deviation, worth)
    if found.count < _TO_BEGIN_WITH:  # whose spread may be small by chance
        needed = max(needed, _TO_BEGIN_WITH)
    if needed <= found.count:
        return (
            f"no difference found between {design} and {base} ({interval}; {found.count} seeds), enough seeds to see "
            f"{amount(worth, metric)} four times out of five"
        )
    time = (
        "" if seconds_a_seed is None else f", about {time_in_words((needed - found.count) * seconds_a_seed)} more here"
    )
    return (
        f"no difference found between {design} and {base} at this budget ({interval}; {found.count} seeds); to see "
        f"{amount(worth, metric)} you need {needed:,} seeds{time}"
    )


def amount(value: float, metric: Metric) -> str:
    """A difference of this metric, as in "0.5 points"."""
    return f"{value:g} {_unit(metric, value)}".rstrip()


def time_in_words(seconds: float) -> str:
    """In the unit that suits: "40 s", "12 min", "3.4 h", "2.1 days"."""
    for limit, factor, unit, digits in ((90, 1, "s", 0), (5400, 60, "min", 0), (48 * 3600, 3600, "h", 1)):
        if seconds < limit:
            return f"{seconds / factor:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _unit(metric: Metric, value: float) -> str:
    if metric.unit != "%":
        return metric.unit or metric.title
    return "point" if value == 1 else "points"


def _signed(value: float) -> str:
    return f"{value:+.2f}"
