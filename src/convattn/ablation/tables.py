"""Results as tables, for the terminal and the page."""

from collections.abc import Iterator

from convattn.ablation.costs import Costs
from convattn.ablation.plan import Budget, Plan
from convattn.ablation.results import Results, Row
from convattn.ablation.sentence import time_in_words
from convattn.report.templates import short_count
from convattn.task import Table

__all__ = ["BUDGETS", "missing_table", "plan_table", "results_tables"]

BUDGETS = {"epochs": "Equal epochs", "time": "Equal time"}
_DASH = "–"


def results_tables(results: Results) -> Iterator[Table]:
    """A table a budget: cost, figures, differences to the base."""
    has_published = any(design.published is not None for design in results.plan.comparison.designs)
    for budget, rows in results.rows.items():
        columns = ["Design", "Parameters", "MACs", "Latency, ms", "Training images/s", "Updates", "Seeds"]
        columns += [results.metric.title, "Difference", "95 % interval", "p, Holm"]
        columns += ["Published"] if has_published else []
        cells = tuple(tuple(_cells(results, row))[: len(columns)] for row in rows)
        yield Table(BUDGETS[budget], tuple(columns), cells, frozenset(range(1, len(columns))), _note(results, budget))


def missing_table(plan: Plan) -> Table:
    """What could not be built, and why; without rows if all could."""
    rows = tuple((design.name, design.missing) for design in plan.comparison.designs if design.missing)
    return Table("Not built", ("Design", "Why"), rows)


def plan_table(plan: Plan) -> Table:
    """How long each run is, under each budget."""
    rows = []
    for budget in plan.budgets:
        for design in plan.comparison.buildable:
            costs, updates = plan.costs[design.name], plan.updates(design, budget)
            epochs = f"{updates / costs.updates_per_epoch:.2f}"
            time = time_in_words(updates * costs.update_seconds)
            rows.append((design.name, BUDGETS[budget].lower(), f"{updates:,}", epochs, time, *_costs(costs)))
    columns = ("Design", "Budget", "Updates", "Epochs", "A run", "Parameters", "MACs", "Latency, ms", "Images/s")
    return Table("Runs of one seed", columns, tuple(rows), frozenset(range(2, len(columns))))


def _cells(results: Results, row: Row) -> Iterator[str]:
    yield row.design.name
    yield from _costs(row.costs)
    yield f"{row.updates:,}"
    yield str(len(row.figures))
    yield results.metric.text(row.mean)
    if row.interval is None:
        yield from (_DASH,) * 3
    else:
        digits = results.metric.digits
        yield f"{row.interval.mean:+.{digits}f}"
        yield f"{row.interval.low:+.{digits}f} to {row.interval.high:+.{digits}f}"
        yield f"{row.adjusted_p:.3f}"
    yield _DASH if row.design.published is None else f"{row.design.published:g} %"


def _costs(costs: Costs) -> Iterator[str]:
    yield short_count(costs.parameters)
    yield _DASH if costs.macs is None else short_count(costs.macs)
    yield _DASH if costs.median_ms is None else f"{costs.median_ms:.2f}"
    yield f"{costs.images_per_second:,.0f}"


def _note(results: Results, budget: Budget) -> str:
    published = results.plan.comparison.published_as
    more = f" Published: {published}." if published else ""
    equal = {
        "epochs": "Each design sees as many images.",
        "time": "Each design trains as long, by the times measured before the first run.",
    }[budget]
    return f"{equal} {results.metric.title} of {results.judged}.{more}"
