"""What a search found, trained again from scratch beside what else there is at this latency.

The figure by which a network was chosen is too high: it was the best of many. Only runs of their own count, with paired
seeds, judged by images that chose nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from convattn.ablation.design import Comparison, Design
from convattn.ablation.plan import Plan
from convattn.ablation.search.halving import Halved
from convattn.ablation.search.space import MODEL, Space
from convattn.ablation.search.study import Network
from convattn.ablation.sweep import is_done
from convattn.ablation.widening import at_latency
from convattn.bench.latency import Latency
from convattn.config_errors import check
from convattn.recipes import RECIPES
from convattn.report.run import read_run
from convattn.task import Metric

__all__ = ["FAMILIES", "chosen", "finalists", "with_latencies"]

FAMILIES = ("smt_nano", "groupmixformer_nano", "nextvit_nano", "cotnet_nano", "resnet18_das_cifar")
_TOP = 3
_FOUND = "found"


def finalists(
    space: Space,
    networks: Sequence[Network],
    halved: Halved,
    metric: Metric,
    limit_ms: float,
    measure: Callable[[Design], float],
    *,
    title: str,
    classes: int,
    note: Callable[[str], object] = lambda line: None,
) -> Comparison:
    """The best three, the best of the random search, a hand-made network and the five families at this latency.

    The widths of the others are scaled to `limit_ms`, by what `measure` finds, milliseconds.

    Raises:
        ConfigError: if no run of the search was finished.
    """
    options = {"num_classes": classes}
    by_number = {network.number: network for network in networks}
    ranking, at_random = halved.ranking(metric)[:_TOP], halved.best_at_random(metric)
    check(bool(ranking), "none of the search's runs was finished")
    designs = []
    for place, number in enumerate(ranking, start=1):
        also = "; the best of the random search too" if number == at_random else ""
        designs.append(_drawn(f"{_FOUND} {place}", by_number[number], f"{by_number[number].name} of the search{also}"))
    if at_random is not None and at_random not in ranking:
        designs.append(_drawn("random search", by_number[at_random], f"{by_number[at_random].name} of the search"))
    hand_made = Design("hand-made", MODEL, space.hand_made(), role="base")
    note("hand-made network at this latency")
    designs.insert(0, at_latency(hand_made, limit_ms, measure, options))
    for family in FAMILIES:
        note(f"{family} at this latency")
        model = RECIPES[f"{family}_small_images"]().model
        try:
            designs.append(at_latency(Design(family, model.name, model.options), limit_ms, measure, options))
        except (ValueError, RuntimeError) as error:
            designs.append(Design(family, missing=" ".join(str(error).split())))
    note_of_all = "Found by figures on images held out, and trained again from scratch."
    return Comparison(title, tuple(designs), note=note_of_all)


def with_latencies(plan: Plan, measured: Mapping[str, Latency]) -> Plan:
    """The plan with the times of the designs in the runtime that they are for, in the place of those in training."""
    costs = {
        name: replace(one, median_ms=row.median_ms, p10_ms=row.p10_ms, p90_ms=row.p90_ms)
        for name, one in plan.costs.items()
        for row in [measured[name]]
    }
    return replace(plan, costs=costs)


def chosen(plan: Plan, output: Path, metric: Metric) -> tuple[Design, Mapping[str, float]] | None:
    """The best of those found, by the mean over the seeds on the images held out, and these means.

    None while none has all of its runs.
    """
    means: dict[str, float] = {}
    found = [design for design in plan.comparison.buildable if design.name.startswith(_FOUND)]
    for design in found:
        runs = [plan.run(output, design, plan.budgets[0], seed) for seed in range(plan.seeds)]
        values = [read_run(run.folder).epochs[-1].get(metric.name) for run in runs if is_done(run)]
        known = [value for value in values if value is not None]
        if len(known) == plan.seeds:
            means[design.name] = sum(known) / len(known)
    if not means:
        return None
    best = (max if metric.greater_is_better else min)(means, key=means.__getitem__)
    return next(design for design in found if design.name == best), means


def _drawn(name: str, network: Network, note: str) -> Design:
    return Design(name, MODEL, network.options, note=note)
