"""Several runs beside one another: which did best, and in what they differ."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convattn.page import Figure, Report, RunCurves, Table
from convattn.report.charts import VALIDATION_LOSS
from convattn.report.run import RunError, RunFolder, as_text, duration, read_run

__all__ = [
    "by_data",
    "comparison_report",
    "comparison_tables",
    "differing_fields",
    "figures_table",
    "find_runs",
    "run_row",
    "settings_table",
]

_NOT_COMPARED = {"output.folder"}  # differs always


def find_runs(directory: str | Path) -> tuple[dict[str, RunFolder], list[str]]:
    """The runs in a folder and below it, which have `config.json` and `log.jsonl`, and a line about each damaged one.

    By their path within `directory` ("." for itself), sorted. RunError if there is no such folder.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise RunError(f"{directory}: no such folder")
    runs, problems = {}, []
    for log in sorted(directory.rglob("log.jsonl")):
        if not (log.parent / "config.json").is_file():
            continue
        try:
            runs[log.parent.relative_to(directory).as_posix()] = read_run(log.parent)
        except RunError as error:
            problems.append(str(error))
    return runs, problems


def differing_fields(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Fields of the configuration that are not the same in all runs -> the value in each, None where it is missing."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in _NOT_COMPARED)
    values = {name: [run.config.get(name) for run in runs] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def run_row(run: RunFolder) -> dict[str, Any]:
    """The key figures of a run; None for what was not measured."""
    last = {} if not run.epochs else run.epochs[-1].values
    first = run.metrics[0].name
    return {
        "model": run.model,
        "network": run.network,
        "task": run.kind,
        "data": run.data,
        run.unit: run.done,
        "planned": run.planned,
        f"best_{first}": run.best.get(first) if run.best else None,
        f"best_{run.axis}": run.best_at,
        **{name: last.get(name) for name in ("train_loss", VALIDATION_LOSS, "images_per_second")},
        "hours": run.seconds / 3600,
    }


def comparison_report(runs: dict[str, RunFolder], title: str, problems: Sequence[str] = ()) -> Report:
    """The page about several runs by name: the best, their curves over one another, figures, and what differs.

    `problems` are lines about runs that could not be read.
    """
    time = duration(sum(run.seconds for run in runs.values()))
    return Report(
        title=title,
        summary=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {time} in all.",
        figures=tuple(_figures(runs)),
        runs=tuple(RunCurves(name, run.epochs, run.metrics, run.axis, run.data) for name, run in runs.items()),
        tables=(
            *comparison_tables(runs),
            Table("Passed over", ("Damaged run",), tuple((problem,) for problem in problems)),
        ),
    )


def figures_table(runs: dict[str, RunFolder], title: str = "Figures") -> Table:
    """A row of key figures a run, as text."""
    rows = []
    unit, axis = _common(run.unit for run in runs.values()), _common(run.axis for run in runs.values())
    for name, run in runs.items():
        row = run_row(run)
        best = f"{run.best_text} ({run.best_at})" if run.best else "–"
        losses = ["–" if row[key] is None else f"{row[key]:.3f}" for key in ("train_loss", VALIDATION_LOSS)]
        speed = "–" if row["images_per_second"] is None else f"{row['images_per_second']:,.0f}"
        length = f"{run.done:,} / {run.planned:,}{'' if unit else f' {run.unit}'}"
        rows.append((name, row["network"], length, best, *losses, speed, f"{row['hours']:.2f}"))
    title_of_best = _common(_inside_a_sentence(run.metrics[0].title) for run in runs.values())
    best_title = f"Best {title_of_best or ''}".rstrip() + f" ({axis or 'epoch or update'})"
    columns = (
        "Run",
        "Model",
        (unit or "length").capitalize(),
        best_title,
        "Train loss",
        "Val loss",
        "Images/s",
        "Hours",
    )
    return Table(title, columns, tuple(rows), numbers=frozenset(range(2, len(columns))))


def _inside_a_sentence(title: str) -> str:
    """A title as it stands behind other words: "top-1", and still "mIoU" and "AP"."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def _common(words: Iterable[str]) -> str | None:
    """What is the same in all."""
    several = {*words}
    return several.pop() if len(several) == 1 else None


def settings_table(runs: dict[str, RunFolder], title: str = "Settings that differ") -> Table:
    """A row a setting that is not the same in all runs, a column a run; without rows if there is none."""
    rows = ((field, *map(as_text, values)) for field, values in differing_fields(list(runs.values())).items())
    return Table(title, ("Setting", *runs), tuple(rows))


def comparison_tables(runs: dict[str, RunFolder]) -> list[Table]:
    """Figures and settings that differ, of the runs on the same data; tables without rows are left out."""
    tables = []
    groups = by_data(runs)
    for data, those in groups.items():
        on = f" on {data}" if len(groups) > 1 else ""
        tables += [figures_table(those, f"Figures{on}"), settings_table(those, f"Settings that differ{on}")]
    return [table for table in tables if table.rows]


def by_data(runs: dict[str, RunFolder]) -> dict[str, dict[str, RunFolder]]:
    """The runs on each data source: figures of different images say nothing of one another."""
    groups: dict[str, dict[str, RunFolder]] = {}
    for name, run in runs.items():
        groups.setdefault(run.data, {})[name] = run
    return groups


def _figures(runs: dict[str, RunFolder]) -> list[Figure]:
    """The three best runs; the best on each data where there are several. Only what one metric judges is ranked."""
    groups = by_data(runs)
    if len(groups) > 1:
        return [
            replace(best, label=f"{best.label} on {data}") for data, one in groups.items() for best in _best(one)[:1]
        ]
    return _best(runs)


def _best(runs: dict[str, RunFolder]) -> list[Figure]:
    metrics = {run.metrics[0] for run in runs.values()}
    if len(metrics) != 1:
        return []
    first = metrics.pop()
    measured = [(run.best.get(first.name) or 0.0, run, name) for name, run in runs.items() if run.best]
    measured.sort(key=lambda entry: entry[0], reverse=first.greater_is_better)
    labels = (f"Best {first.title}", "Second", "Third")
    return [
        Figure(label, run.best_text, f"{name}, {run.axis} {run.best_at}")
        for label, (_, run, name) in zip(labels, measured, strict=False)
        if run.best is not None
    ]
