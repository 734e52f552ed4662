"""One self-contained HTML page about a model: how it learned, what it confuses, where it looks, what it costs."""

from convattn.page import (
    Command,
    Confusion,
    Epoch,
    Figure,
    FusionRow,
    GalleryItem,
    LatencyRow,
    Parity,
    ParityRow,
    Report,
    RunCurves,
    StageRow,
    Table,
    epochs_from_log,
)
from convattn.report.write import write_report

__all__ = [
    "Command",
    "Confusion",
    "Epoch",
    "Figure",
    "FusionRow",
    "GalleryItem",
    "LatencyRow",
    "Parity",
    "ParityRow",
    "Report",
    "RunCurves",
    "StageRow",
    "Table",
    "epochs_from_log",
    "write_report",
]
