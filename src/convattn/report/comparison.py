"""Several runs beside one another: which did best, and in what they differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convattn.page import Figure, Report, RunCurves, Table
from convattn.report.charts import VALIDATION_LOSS
from convattn.report.run import RunError, RunFolder, as_text, duration, read_run
from convattn.report.write import write_report

__all__ = [
    "comparison_report",
    "differing_fields",
    "figures_table",
    "find_runs",
    "run_row",
    "settings_table",
    "write_comparison",
]

_NOT_COMPARED = {"output.folder"}  # differs always


def find_runs(directory: str | Path) -> tuple[dict[str, RunFolder], list[str]]:
    """The runs in a folder and below it: folders with `config.json` and `log.jsonl`.

    Returns:
        The runs by their path within `directory` ("." for itself), sorted, and a line about each one that is damaged.

    Raises:
        RunError: if there is no such folder.
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
        "task": run.kind,
        run.unit: run.done,
        "planned": run.planned,
        f"best_{first}": run.best.get(first) if run.best else None,
        "best_epoch": run.best.epoch if run.best else None,
        **{name: last.get(name) for name in ("train_loss", VALIDATION_LOSS, "images_per_second")},
        "hours": run.seconds / 3600,
    }


def comparison_report(runs: dict[str, RunFolder], title: str, problems: Sequence[str] = ()) -> Report:
    """The page about several runs: the best ones, their curves over one another, figures, and what differs.

    Args:
        runs: by name.
        title: stands on top.
        problems: a line about each run that could not be read.
    """
    return Report(
        title=title,
        summary=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {_time(runs)} in all.",
        figures=tuple(_figures(runs)),
        runs=tuple(RunCurves(name, run.epochs, run.metrics, run.axis) for name, run in runs.items()),
        tables=(
            figures_table(runs),
            settings_table(runs),
            Table("Passed over", ("Damaged run",), tuple((problem,) for problem in problems)),
        ),
    )


def figures_table(runs: dict[str, RunFolder]) -> Table:
    """A row of key figures a run, as text."""
    rows = []
    for name, run in runs.items():
        row = run_row(run)
        best = f"{run.best_text} ({run.best.epoch})" if run.best else "–"
        losses = ["–" if row[key] is None else f"{row[key]:.3f}" for key in ("train_loss", VALIDATION_LOSS)]
        speed = "–" if row["images_per_second"] is None else f"{row['images_per_second']:,.0f}"
        epochs = f"{run.done:,} / {run.planned:,}"
        rows.append((name, row["model"], epochs, best, *losses, speed, f"{row['hours']:.2f}"))
    titles = {run.metrics[0].title.lower() for run in runs.values()}
    best_title = f"Best {titles.pop()} (epoch)" if len(titles) == 1 else "Best (epoch)"
    columns = ("Run", "Model", "Epochs", best_title, "Train loss", "Val loss", "Images/s", "Hours")
    return Table("Figures", columns, tuple(rows), numbers=frozenset(range(2, len(columns))))


def settings_table(runs: dict[str, RunFolder]) -> Table:
    """A row of settings a run: the fields that are not the same in all; without rows if there are none."""
    differing = differing_fields(list(runs.values()))
    texts = [[as_text(value) for value in values] for values in differing.values()]
    rows = zip(runs, *texts, strict=True) if differing else ()
    return Table("Settings that differ", ("Run", *differing), tuple(rows))


def write_comparison(path: str | Path, runs: dict[str, RunFolder], title: str, problems: Sequence[str] = ()) -> Path:
    """Write the page about `runs` to `path`, replacing what is there in one step; arguments of `comparison_report`."""
    return write_report(path, comparison_report(runs, title, problems))


def _figures(runs: dict[str, RunFolder]) -> list[Figure]:
    """The three best runs, where all are judged by one metric."""
    metrics = {run.metrics[0] for run in runs.values()}
    if len(metrics) != 1:
        return []
    first = metrics.pop()
    measured = [(run.best.get(first.name) or 0.0, run, name) for name, run in runs.items() if run.best]
    measured.sort(key=lambda entry: entry[0], reverse=first.greater_is_better)
    return [
        Figure((f"Best {first.title}", "Second", "Third")[place], run.best_text, f"{name}, epoch {run.best.epoch}")
        for place, (_, run, name) in enumerate(measured[:3])
        if run.best is not None
    ]


def _time(runs: dict[str, RunFolder]) -> str:
    return duration(sum(run.seconds for run in runs.values()))
