"""What a report says: plain data, without a word about how it looks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from convattn.task import Metric, Table

__all__ = [
    "Command",
    "Confusion",
    "Curve",
    "Epoch",
    "Figure",
    "FusionRow",
    "Gallery",
    "GalleryItem",
    "LatencyRow",
    "Parity",
    "ParityRow",
    "Plot",
    "Plots",
    "Report",
    "RunCurves",
    "StageRow",
    "Table",
    "epochs_from_log",
]


@dataclass(frozen=True)
class Figure:
    """One of the key figures on top: `value` in large type, `label` above and `note` below it."""

    label: str
    value: str
    note: str = ""
    is_warning: bool = False  # set apart: this figure is not what it should be


Axis = Literal["epoch", "update"]


@dataclass(frozen=True)
class Epoch:
    """One point of the learning curves: a validation, and what was measured since the one before."""

    epoch: int  # the epoch that was under way, from 1
    step: int | None = None  # updates done
    values: Mapping[str, float | None] = field(default_factory=dict)  # as in the log; metrics by their names

    def get(self, name: str) -> float | None:
        """A figure; None if it was not measured."""
        return self.values.get(name)

    def place(self, axis: Axis) -> int:
        """Where it is on an axis; by its epoch where updates were not counted."""
        return self.epoch if axis == "epoch" or self.step is None else self.step


@dataclass(frozen=True)
class RunCurves:
    """The epochs of one of several runs that are compared."""

    name: str
    epochs: tuple[Epoch, ...]
    metrics: tuple[Metric, ...] = ()
    axis: Axis = "epoch"
    data: str = ""  # runs on different data are not drawn over one another


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    name: str
    points: tuple[tuple[int, float], ...]  # from left to right, in percent
    figure: str = ""  # what it comes to, beside its name


@dataclass(frozen=True)
class Plot:
    """Shares over another share, both 0 to 100 %."""

    title: str
    across: str  # what goes from left to right
    curves: tuple[Curve, ...]  # those without points are left out
    is_score: bool = False  # what goes across is written from 0 to 1


@dataclass(frozen=True)
class Plots:
    """Several under a heading of their own."""

    title: str
    intro: str
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Confusion:
    """How often what is of one class (row) was taken for another (column)."""

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    unit: str = "images"  # what is counted
    in_percent: bool = False  # shown as shares of a row: of pixels nobody reads the numbers
    told: str = ""  # what is wrong, in a sentence of its own
    has_nothing: bool = False  # the last row is what is said of nothing, the last column what nothing is said of

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if len(self.counts) != classes or any(len(row) != classes for row in self.counts):
            sizes = sorted({len(row) for row in self.counts})
            raise ValueError(f"counts are {len(self.counts)} rows of {sizes}; {classes} classes need {classes} of each")

    def confused_pairs(self) -> list[tuple[str, str, int, int]]:
        """(true class, predicted class, how many, all of the true class), most frequent first."""
        pairs = [
            (name, self.class_names[column], count, sum(row))
            for index, (name, row) in enumerate(zip(self.class_names, self.counts, strict=True))
            for column, count in enumerate(row)
            if count and column != index
        ]
        return sorted(pairs, key=lambda pair: -pair[2])


@dataclass(frozen=True)
class GalleryItem:
    """A sample and what the model said about it."""

    pictures: tuple[tuple[bytes, str], ...]  # encoded PNG or JPEG, and what each shows
    said: str
    share: float  # 0..1: how sure it was, or how right it is
    truth: str = ""  # where the model said something else
    is_right: bool | None = None  # None where nothing is simply right or wrong
    name: str = ""  # of the sample: a file name or a number


@dataclass(frozen=True)
class Gallery:
    """Samples under a heading of their own."""

    title: str
    intro: str  # what the pictures show, and how the samples were chosen
    items: tuple[GalleryItem, ...]

    @property
    def sections(self) -> tuple[tuple[bool | None, str, tuple[GalleryItem, ...]], ...]:
        """The wrong ones, the right ones, and those that are neither, each where there are some."""
        kinds = ((False, "Wrong"), (True, "Right"), (None, ""))
        found = ((kind, title, tuple(item for item in self.items if item.is_right is kind)) for kind, title in kinds)
        return tuple(section for section in found if section[2])


@dataclass(frozen=True)
class StageRow:
    """One part of the model; `output_shape` without the batch."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class LatencyRow:
    """Milliseconds of one call, over interleaved repeats. A report compares its rows to the first of them."""

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float


@dataclass(frozen=True)
class ParityRow:
    """The exported model against the eager one on one input."""

    input_shape: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class Parity:
    """The comparison behind an exported file."""

    file: str
    tolerance: float  # on the relative error
    rows: tuple[ParityRow, ...]


@dataclass(frozen=True)
class FusionRow:
    """What `fuse` did to one module."""

    name: str
    what: str


@dataclass(frozen=True)
class Command:
    """A command line to go on with, and what it does."""

    line: str
    what: str


@dataclass(frozen=True)
class Report:
    """Everything on the page. A section whose data is empty is left out."""

    title: str
    summary: str = ""  # a sentence below the title
    figures: tuple[Figure, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    metrics: tuple[Metric, ...] = ()  # those of the epochs' values that are
    axis: Axis = "epoch"  # what the curves go over
    runs: tuple[RunCurves, ...] = ()  # drawn over one another
    tables: tuple[Table, ...] = ()  # those without rows are left out
    plots: Plots | None = None
    confusion: Confusion | None = None
    gallery: Gallery | None = None
    stages: tuple[StageRow, ...] = ()
    latency: tuple[LatencyRow, ...] = ()
    latency_note: str = ""  # batch, threads, repeats
    parity: Parity | None = None
    fusion: tuple[FusionRow, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    commands: tuple[Command, ...] = ()


def epochs_from_log(entries: Iterable[Mapping[str, float | None]]) -> tuple[Epoch, ...]:
    """The learning curves out of the entries of a run's `log.jsonl`."""
    found = []
    for entry in entries:
        step = entry.get("step")
        found.append(Epoch(int(entry["epoch"] or 0), None if step is None else int(step), dict(entry)))
    return tuple(found)
