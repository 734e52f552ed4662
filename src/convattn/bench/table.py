"""What a comparison found: rows, and how they read as text and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from convattn.bench.latency import Latency
from convattn.bench.runtimes import Setting
from convattn.task import Table

__all__ = ["COMPARED_WITH", "BenchmarkRow", "BenchmarkTable", "NotMeasured", "figures_table"]

# The inference forms run in eager mode too: what they gain shows against the reference as it is.
COMPARED_WITH = {"fused": "eager", "prepacked": "eager"}


@dataclass(frozen=True)
class BenchmarkRow:
    """One model in one runtime."""

    model: str
    runtime: str
    setting: Setting
    layout: str  # of the images, for PyTorch's runtimes: the faster one for `eager`
    parameters: int | None  # these two None of an exported file
    macs: int | None  # of one image
    latency: Latency  # of a batch
    peak_bytes: int | None = None  # weights and what a call needs besides
    top1: float | None = None  # percent, as published for this image size
    source: str = ""  # where

    @property
    def images_per_second(self) -> float:
        return 1000 * self.setting.batch_size / self.latency.median_ms

    @property
    def nanoseconds_per_mmac(self) -> float | None:
        """Time per million multiply-adds, where those are known."""
        if self.macs is None:
            return None
        return 1e12 * self.latency.median_ms / (self.macs * self.setting.batch_size)


@dataclass(frozen=True)
class NotMeasured:
    """A row that could not be had, and why."""

    model: str
    runtime: str
    setting: Setting
    why: str


@dataclass(frozen=True)
class BenchmarkTable:
    """All rows of one run, and what they were measured on."""

    rows: tuple[BenchmarkRow, ...]
    environment: dict[str, str]
    reference: str | None = None  # the model that time per multiply-add is given over
    not_measured: tuple[NotMeasured, ...] = ()
    interrupted: bool = False

    def per_mac(self, row: BenchmarkRow) -> float | None:
        """Time per multiply-add over that of the reference in the same runtime and setting.

        `fused` and `prepacked` are compared with the reference in `eager`, its better layout. None where the reference
        was not measured.
        """
        runtime = COMPARED_WITH.get(row.runtime, row.runtime)
        for other in self.rows:
            if (other.model, other.runtime, other.setting) == (self.reference, runtime, row.setting):
                mine, theirs = row.nanoseconds_per_mmac, other.nanoseconds_per_mmac
                return None if mine is None or theirs is None else mine / theirs
        return None

    def settings(self) -> list[Setting]:
        """The settings of the rows, in the order of the run."""
        return list(dict.fromkeys(row.setting for row in self.rows))

    def columns(self) -> tuple[str, ...]:
        """What stands over the cells of `cells`."""
        over = ("per MAC",) if self.reference else ()
        timing = ("median ms", "p10–p90", "p95", "images/s", "peak MiB", "faults")
        return "model", "runtime", *timing, "GMAC", "M params", *over, "top-1 %"

    def cells(self, row: BenchmarkRow) -> tuple[str, ...]:
        """A row as text."""
        time = row.latency
        ratio = self.per_mac(row)
        over = ("-" if ratio is None else f"{ratio:.2f}",) if self.reference else ()
        return (
            row.model,
            f"{row.runtime} ({row.layout})" if row.runtime == "eager" else row.runtime,
            _milliseconds(time.median_ms),
            f"{_milliseconds(time.p10_ms)}–{_milliseconds(time.p90_ms)}",
            _milliseconds(time.p95_ms),
            f"{row.images_per_second:.1f}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
            "-" if time.page_faults is None else f"{time.page_faults:.0f}",
            "-" if row.macs is None else f"{row.macs / 1e9:.{2 if row.macs >= 1e9 else 4}f}",
            "-" if row.parameters is None else f"{row.parameters / 1e6:.1f}",
            *over,
            "-" if row.top1 is None else f"{row.top1:.1f}",
        )

    def ratios(self, setting: Setting) -> list[tuple[str, ...]]:
        """Time per multiply-add as models by runtimes, the first row the names of the runtimes."""
        rows = [row for row in self.rows if row.setting == setting]
        runtimes = list(dict.fromkeys(row.runtime for row in rows))
        found = {(row.model, row.runtime): self.per_mac(row) for row in rows}
        lines = [("model", *runtimes)]
        for model in dict.fromkeys(row.model for row in rows):
            ratios = [found.get((model, runtime)) for runtime in runtimes]
            lines.append((model, *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)))
        return lines

    def sources(self) -> list[str]:
        """Where the accuracies were published, a line a source."""
        models: dict[str, list[str]] = {}
        for row in self.rows:
            if row.source and row.model not in models.setdefault(row.source, []):
                models[row.source].append(row.model)
        return [f"{', '.join(names)}: top-1 as published, {source}" for source, names in models.items()]

    def tables(self) -> list[Table]:
        """The figures of each setting, and behind them their ratios where there is a reference."""
        found = []
        for setting in self.settings():
            rows = tuple(self.cells(row) for row in self.rows if row.setting == setting)
            found.append(figures_table(f"Figures: {setting}", self.columns(), rows, words=2))
            if self.reference:
                head, *ratios = self.ratios(setting)
                note = (
                    f"Time per multiply-add over that of {self.reference} in the same runtime; "
                    "fused and prepacked over its eager form."
                )
                found.append(figures_table(f"Per multiply-add: {setting}", head, tuple(ratios), note=note))
        return found

    def to_markdown(self) -> str:
        """The tables as Markdown, with what was not measured and on what the rest was."""
        lines = [", ".join(f"{key} {value}" for key, value in self.environment.items())]
        for table in self.tables():
            lines += ["", " ".join(filter(None, (f"{table.title}.", table.note))), "", *_markdown(table)]
        lines += [""] + [f"{gap.model}, {gap.runtime}, {gap.setting}: {gap.why}" for gap in self.not_measured]
        return "\n".join(lines + self.sources()).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "environment": self.environment,
            "reference": self.reference,
            "interrupted": self.interrupted,
            "rows": [
                {
                    **asdict(row.setting),
                    **{key: value for key, value in asdict(row).items() if key not in ("latency", "setting")},
                    **{key: value for key, value in asdict(row.latency).items() if key != "name"},
                    "images_per_second": row.images_per_second,
                    "per_mac": self.per_mac(row),
                }
                for row in self.rows
            ],
            "not_measured": [
                {"model": gap.model, "runtime": gap.runtime, **asdict(gap.setting), "why": gap.why}
                for gap in self.not_measured
            ],
        }


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def figures_table(
    title: str, columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...], words: int = 1, note: str = ""
) -> Table:
    """A table whose first `words` columns hold words, the others numbers."""
    return Table(title, columns, rows, frozenset(range(words, len(columns))), note)


def _markdown(table: Table) -> Iterable[str]:
    yield f"| {' | '.join(table.columns)} |"
    yield "|" + "".join(" ---: |" if at in table.numbers else " --- |" for at in range(len(table.columns)))
    for row in table.rows:
        yield f"| {' | '.join(row)} |"
