"""What the runs of a plan came to: figures by seed, differences to the base, and a sentence for each design."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convattn.ablation.costs import Costs
from convattn.ablation.design import Design
from convattn.ablation.plan import Budget, Choice, Factors, Plan
from convattn.ablation.sentence import sentence
from convattn.ablation.statistics import (
    LEAST_FOR_BOOTSTRAP,
    Interval,
    bootstrap_interval,
    holm,
    paired_differences,
    paired_interval,
)
from convattn.ablation.sweep import is_done
from convattn.data.held_out import share_of
from convattn.page import Epoch
from convattn.report.run import RunFolder, read_run
from convattn.rooms import words_of
from convattn.task import Metric

__all__ = ["TEST", "Results", "Row", "read_results"]

TEST = "test"  # of `data.evaluations`: the images that have no say in what is kept


@dataclass(frozen=True)
class Row:
    """A design under a budget."""

    design: Design
    costs: Costs
    updates: int  # of each run
    figures: Mapping[int, float]  # seed -> of the task's first metric
    seconds: float | None  # that a run took, validation included; the mean of those that are done
    interval: Interval | None = None  # of the differences to the base; None for it, and with fewer than two seeds
    bootstrap: Interval | None = None  # from ten seeds on
    adjusted_p: float | None = None  # after Holm, over the designs of this budget
    sentence: str = ""  # of the difference to the base; of a control also of the design that it is for

    @property
    def mean(self) -> float | None:
        """Of the seeds that are done."""
        return sum(self.figures.values()) / len(self.figures) if self.figures else None


@dataclass(frozen=True)
class Results:
    """All designs under all budgets."""

    plan: Plan
    metric: Metric
    rows: Mapping[Budget, tuple[Row, ...]]
    judged: str  # on which images, and by which epoch
    worth: float

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.plan.comparison.title,
            "source": self.plan.comparison.source,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "judged": self.judged,
            "worth": self.worth,
            "seeds": self.plan.seeds,
            "budgets": {budget: [self._row_as_data(row) for row in rows] for budget, rows in self.rows.items()},
            "not_built": {d.name: d.missing for d in self.plan.comparison.designs if d.missing},
            "environment": dict(self.plan.environment),
        }

    def _row_as_data(self, row: Row) -> dict[str, Any]:
        interval, boot = row.interval, row.bootstrap
        optimizer, factors = self.plan.recipe.optimizer, self.plan.factors.get(row.design.name, Factors())
        return {
            "design": row.design.name,
            "role": row.design.role,
            "model": row.design.model,
            "options": dict(row.design.options),
            "plug_ins": [dict(one) for one in row.design.plug_ins],
            "note": row.design.note,
            "published": row.design.published,
            "parameters": row.costs.parameters,
            "macs": row.costs.macs,
            "latency_ms": row.costs.median_ms,
            "latency_p10_ms": row.costs.p10_ms,
            "latency_p90_ms": row.costs.p90_ms,
            "training_images_per_second": row.costs.images_per_second,
            "memory": row.costs.memory,
            "updates": row.updates,
            "seconds": row.seconds,
            "figures": {str(seed): value for seed, value in row.figures.items()},
            "mean": row.mean,
            "difference": None if interval is None else interval.mean,
            "interval": None if interval is None else [interval.low, interval.high],
            "bootstrap": None if boot is None else [boot.low, boot.high],
            "p": None if interval is None else interval.p,
            "adjusted_p": row.adjusted_p,
            "sentence": row.sentence,
            "learning_rate": optimizer.lr * factors.lr,
            "weight_decay": optimizer.weight_decay * factors.weight_decay,
        }


def read_results(plan: Plan, output: Path, worth: float) -> Results:
    """The results so far, of the runs in `output`: a design with fewer than two finished pairs has no interval yet.

    `worth` is the smallest difference that matters, in the metric's unit.
    """
    metric = words_of(plan.recipe.task.kind).metrics[0]
    rows = {budget: _rows(plan, budget, output, metric, worth) for budget in plan.budgets}
    return Results(plan, metric, rows, _judged(plan), worth)


def _rows(plan: Plan, budget: Budget, output: Path, metric: Metric, worth: float) -> tuple[Row, ...]:
    rows = {design.name: _row(plan, design, budget, output, metric) for design in plan.comparison.buildable}
    base = plan.comparison.base.name
    known = [row.seconds for row in rows.values() if row.seconds is not None]
    seconds_a_seed = sum(known) if len(known) == len(rows) else plan.seconds_a_seed[budget]
    # Everything against the base, and what has a control against that: one family, decided by the plan.
    pairs = [(name, base) for name in rows if name != base]
    pairs += [(row.design.control_of, name) for name, row in rows.items() if row.design.control_of in rows]
    differences = {pair: paired_differences(rows[pair[1]].figures, rows[pair[0]].figures) for pair in pairs}
    share = share_of(plan.recipe.data.validation)
    resampled = share / (1 - share) if share is not None and not plan.recipe.data.evaluations else None
    found = {
        pair: paired_interval(values, test_over_train=resampled)
        for pair, values in differences.items()
        if len(values) >= 2
    }
    adjusted = dict(zip(found, holm([interval.p or 0.0 for interval in found.values()]), strict=True))
    said = {
        pair: sentence(*pair, metric, interval, adjusted_p=adjusted[pair], worth=worth, seconds_a_seed=seconds_a_seed)
        for pair, interval in found.items()
    }
    finished = []
    for name, row in rows.items():
        pair, control = (name, base), (row.design.control_of, name)
        if pair in found:
            values = differences[pair]
            row = replace(
                row,
                interval=found[pair],
                bootstrap=bootstrap_interval(values) if len(values) >= LEAST_FOR_BOOTSTRAP else None,
                adjusted_p=adjusted[pair],
                sentence="; ".join(said[each] for each in (pair, control) if each in said),
            )
        elif pair in differences:
            text = f"{name}: {len(differences[pair])} of {plan.seeds} seeds done beside {base}; two are the least"
            row = replace(row, sentence=text)
        finished.append(row)
    return tuple(finished)


def _row(plan: Plan, design: Design, budget: Budget, output: Path, metric: Metric) -> Row:
    figures, seconds = {}, []
    for seed in range(plan.seeds):
        planned = plan.run(output, design, budget, seed)
        if not is_done(planned):
            continue
        run = read_run(planned.folder)
        value = _figure(run, metric, plan.choice)
        if value is not None:
            figures[seed] = value
            seconds.append(run.seconds)
    mean = sum(seconds) / len(seconds) if seconds else None
    return Row(design, plan.costs[design.name], plan.updates(design, budget), figures, mean)


def _figure(run: RunFolder, metric: Metric, choice: Choice) -> float | None:
    """Of the images that had no say, where there are such, at the chosen epoch."""
    epoch: Epoch | None = run.epochs[-1] if choice == "last" else run.best
    if epoch is None:
        return None
    further = epoch.get(f"{TEST}/{metric.name}")
    return epoch.get(metric.name) if further is None else further


def _judged(plan: Plan) -> str:
    data = plan.recipe.data
    share = share_of(data.validation)
    which = "the last epoch" if plan.choice == "last" else "the epoch that is best on images held out"
    if data.evaluations:
        return f"{which}, on the test images, which choose nothing"
    if share is not None:
        return f"{which}, on {100 * share:g} % of the training images, held out anew with each seed"
    return f"{which}, on the validation images, which choose nothing"
