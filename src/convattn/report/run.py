"""What a run folder says: how far the run is, how well it does, with what; and `report.html` in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.page import Axis, Epoch, Figure, Report, Table, epochs_from_log
from convattn.recipes import RECIPES
from convattn.report.charts import VALIDATION_LOSS
from convattn.report.environment import describe_environment
from convattn.report.templates import short_count
from convattn.report.write import write_report
from convattn.rooms import DEFAULT, words_of
from convattn.shown import brief
from convattn.task import Findings, Metric
from convattn.training.config import RunConfig
from convattn.training.config_json import config_to_json, flat, read_json
from convattn.training.journal import LogError, read_log

__all__ = ["RunError", "RunFolder", "as_text", "duration", "read_run", "write_run_report"]

_MOST_ROWS = 100  # of unreadable images and skipped updates; the files have all
_MOST_PATHS = 4  # of a skipped update


class RunError(ValueError):
    """A run folder that is no run, or a damaged one."""


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder describes it."""

    folder: Path
    config: Mapping[str, Any]  # dotted name of each field -> its value, as in JSON
    epochs: tuple[Epoch, ...]  # those that are finished

    @property
    def model(self) -> str:
        return self.config["model.name"]

    @property
    def network(self) -> str:
        """The model with what stands on it."""
        options = {name.removeprefix("task."): value for name, value in self.config.items() if name.startswith("task.")}
        return words_of(self.kind).network(self.model, options)

    @property
    def data(self) -> str:
        """Where its images are."""
        return as_text(self.config.get("data.source"))

    @property
    def planned(self) -> int:
        """Epochs, or updates, that the whole run has."""
        return self.config.get("schedule.updates") or self.config["schedule.epochs"]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those of its task; the first is what it is judged by."""
        return words_of(self.kind).metrics

    @property
    def kind(self) -> str:
        """Its task."""
        return self.config.get("task.kind", DEFAULT)

    @property
    def best(self) -> Epoch | None:
        """The validation with the best figure, the last of those that tie; None if none was measured."""
        first, best = self.metrics[0], None
        for epoch in self.epochs:
            value = epoch.get(first.name)
            if value is not None and (best is None or not first.is_better(best.get(first.name) or 0.0, value)):
                best = epoch
        return best

    @property
    def best_at(self) -> int | None:
        """On the axis."""
        return None if self.best is None else self.best.place(self.axis)

    @property
    def best_text(self) -> str:
        """Its figure for people."""
        return self.metrics[0].text(self.best.get(self.metrics[0].name) if self.best else None)

    @property
    def seconds(self) -> float:
        """All finished epochs took, validation included."""
        return sum(epoch.get("seconds") or 0.0 for epoch in self.epochs)

    @property
    def done(self) -> int:
        """Epochs that are done, or updates where the run's length is counted in them."""
        if not self.epochs:
            return 0
        return self.epochs[-1].epoch if self.unit == "epochs" else self.epochs[-1].step or 0

    @property
    def axis(self) -> Axis:
        """What its curves go over: updates, where length or validations are counted in them."""
        counted = ("schedule.updates", "loop.validation_updates")
        return "update" if any(self.config.get(name) is not None for name in counted) else "epoch"

    @property
    def unit(self) -> str:
        """What its length is counted in."""
        return "epochs" if self.config.get("schedule.updates") is None else "updates"

    @property
    def is_over(self) -> bool:
        """Whether no further epoch will come: the plan is done, or there was no better result for long enough."""
        if self.done >= self.planned:
            return True
        patience = self.config.get("loop.early_stopping")
        return bool(patience and self.best and len(self.epochs) - 1 - self.epochs.index(self.best) >= patience)


def read_run(folder: str | Path) -> RunFolder:
    """The run in `folder`, from its `config.json` and `log.jsonl`; RunError if one of them is missing or damaged."""
    folder = Path(folder)
    for name in ("config.json", "log.jsonl"):
        if not (folder / name).is_file():
            raise RunError(f"{folder}: no run; it holds no {name}")
    try:
        config = flat(read_json((folder / "config.json").read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{folder / 'config.json'}: damaged ({error})") from None
    # Other versions have other fields; these are what a run is measured by here.
    counts = ("schedule.epochs", "loop.early_stopping", "schedule.updates")
    wrong = [] if isinstance(config.get("model.name"), str) else ["model.name"]
    wrong += [name for name in counts if not _is_count(config.get(name), may_lack=name != "schedule.epochs")]
    if wrong:
        raise RunError(f"{folder / 'config.json'}: no configuration of a run; it lacks {' and '.join(wrong)}")
    try:
        run = RunFolder(folder, config, epochs_from_log(read_log(folder)))
        run.metrics  # noqa: B018, an unknown task is told here
        return run
    except (OSError, LogError) as error:
        raise RunError(f"{folder / 'log.jsonl'}: damaged ({error})") from None


def _is_count(value: Any, may_lack: bool) -> bool:
    return (value is None and may_lack) or (type(value) is int and 1 <= value < 2**31)


def write_run_report(folder: str | Path, findings: Findings | None = None) -> Path:
    """Write `report.html` into a run folder: curves, the best result, what was set, what went wrong; gives its path.

    May be called after every epoch: the page is replaced in one step. The environment is that of the caller. RunError
    if the folder holds no run, or a damaged one.

    Args:
        folder: holds `config.json` and `log.jsonl`; `unreadable.txt` and `skipped.jsonl` are shown where they exist.
        findings: what the best model says of each validation image, once the run is over.
    """
    run = read_run(folder)
    skipped_file = run.folder / "skipped.jsonl"
    unreadable, skipped = _lines(run.folder / "unreadable.txt"), _lines(skipped_file)
    closer = {} if findings is None else findings.page()
    report = Report(
        title=f"{run.network} on {run.config.get('data.source')}",
        summary=f"Run in {run.folder}, {run.done:,} of {run.planned:,} {run.unit}.",
        figures=tuple(_figures(run, len(unreadable), len(skipped))),
        epochs=run.epochs,
        metrics=run.metrics,
        axis=run.axis,
        tables=(
            *closer.pop("tables", ()),
            _configuration_table(run),
            _unreadable_table(unreadable),
            _skipped_table(skipped, skipped_file),
        ),
        **closer,
        environment=describe_environment(),
    )
    return write_report(run.folder / "report.html", report)


def as_text(value: Any) -> str:
    """A value of the configuration for people: JSON, but texts without quotes."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def duration(seconds: float) -> str:
    """In the unit that suits: "42 s", "12 min", "3.4 h", "2.1 days"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 59.5 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def _figures(run: RunFolder, unreadable: int, skipped: int) -> list[Figure]:
    figures = []
    if run.best is not None:
        figures.append(Figure(f"Best {run.metrics[0].title}", run.best_text, f"{run.axis} {run.best_at}"))
    if run.epochs:
        last = run.epochs[-1]
        losses = (("validation", last.get(VALIDATION_LOSS)), ("training", last.get("train_loss")))
        measured = [(f"{value:.3f}", name) for name, value in losses if value is not None]
        if measured:
            note = ", ".join([measured[0][1], *(f"{value} {name}" for value, name in measured[1:])])
            figures.append(Figure("Last loss", measured[0][0], note))
    figures.append(Figure(run.unit.capitalize(), f"{run.done:,} / {run.planned:,}", _outlook(run)))
    speeds = [speed for epoch in run.epochs if (speed := epoch.get("images_per_second")) is not None]
    if speeds:
        figures.append(Figure("Images/s", short_count(round(speeds[-1])), "in training, last epoch"))
    if run.seconds:
        figures.append(Figure("Time", duration(run.seconds), f"{duration(run.seconds / run.done)} an {run.unit[:-1]}"))
    for count, what in ((skipped, "Skipped updates"), (unreadable, "Unreadable images")):
        if count:
            figures.append(Figure(what, f"{count:,}", "listed below", is_warning=True))
    return figures


def _outlook(run: RunFolder) -> str:
    if run.done >= run.planned:
        return "done"
    if run.is_over:
        return f"over: no better result in {run.config['loop.early_stopping']} validations"
    if not run.seconds:
        return ""
    return f"about {duration(run.seconds / run.done * (run.planned - run.done))} to go"


def _configuration_table(run: RunFolder) -> Table:
    """The fields that are not as the recipe has them; without one, not as in a plain `RunConfig`."""
    name = run.config.get("recipe")
    recipe = RECIPES.get(name) if isinstance(name, str) else None
    start = RunConfig(task=words_of(run.kind).training()) if recipe is None else recipe()
    default = flat(json.loads(config_to_json(start)))
    changed = [
        (field, as_text(value), as_text(default.get(field)) if field in default else "–")
        for field, value in run.config.items()
        if field not in ("output.folder", "recipe") and (field not in default or value != default[field])
    ]
    if recipe is None:
        columns, note = ("Field", "Value", "Default"), "What is set; the rest is at its default."
    else:
        columns, note = ("Field", "Value", "Recipe"), f"What was changed of the recipe {name}; the rest is as it says."
    return Table("Configuration", columns, tuple(changed), note=note)


def _unreadable_table(reasons: list[str]) -> Table:
    rows = [(reason,) for reason in reasons]  # a name may have a colon in it
    return Table("Unreadable images", ("File, and why",), tuple(rows[:_MOST_ROWS]), note=_note(rows, "unreadable.txt"))


def _skipped_table(lines: list[str], path: Path) -> Table:
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = read_json(line)
            step, reason, paths = str(int(entry["step"])), str(entry["reason"]), [str(path) for path in entry["paths"]]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path}, line {number}: not a skipped update; remove the line") from None
        rows.append((step, reason, brief(paths, _MOST_PATHS)))
    columns = ("Update", "Why", "Images of its batch")
    return Table("Skipped updates", columns, tuple(rows[:_MOST_ROWS]), note=_note(rows, path.name))


def _note(rows: list, file: str) -> str:
    return f"The first {_MOST_ROWS} of {len(rows):,}; all are in {file}." if len(rows) > _MOST_ROWS else ""


def _lines(path: Path) -> list[str]:
    """The finished lines of a text file, whose names of files need not be UTF-8; none if there is no such file."""
    return path.read_text("utf-8", errors="replace").split("\n")[:-1] if path.is_file() else []
