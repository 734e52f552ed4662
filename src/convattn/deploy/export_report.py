"""What an export found: the file, how well it agrees with the model, and where it does not."""

import dataclasses
from dataclasses import dataclass

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.first_difference import FirstDifference
from convattn.deploy.fuse import FusedPart
from convattn.deploy.gate import ParityCheck
from convattn.deploy.quantize import QuantisedLayer
from convattn.deploy.runtimes.runtime import Precision
from convattn.json_text import json_text
from convattn.task import Metric

__all__ = ["ExportError", "ExportReport", "MetricChange"]


@dataclass(frozen=True)
class MetricChange:
    """What the caller's metric says of the model and of the file."""

    metric: Metric  # its title, its unit, and which way is better
    before: float  # of the eager model
    after: float  # of the exported file
    max_drop: float  # by how much it may get worse

    @property
    def is_kept(self) -> bool:
        """Whether the file is as good as it has to be; of what is no number it is not."""
        worse = self.before - self.after if self.metric.greater_is_better else self.after - self.before
        return worse <= self.max_drop

    def __str__(self) -> str:
        """The end of a sentence, as in "Top-1 falls from 90 to 70 %"."""
        way = "falls" if self.metric.greater_is_better else "rises"
        unit = f" {self.metric.unit}" if self.metric.unit else ""
        return f"{self.metric.title} {way} from {self.before:.6g} to {self.after:.6g}{unit}"


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how well it agrees."""

    path: str
    files: tuple[str, ...]  # names of all that was written, beside `path`
    model: str  # its name
    format: str
    precision: Precision
    dynamic: Dynamic
    input_shape: tuple[int, int, int, int]  # (B, C, H, W) of the trace
    opset: int | None  # of ONNX
    operators: dict[str, int]  # in the file, and how often each occurs
    quantisation: tuple[QuantisedLayer, ...] | None  # what 8 bits cost in each layer of an int8 file; None of others
    fused: tuple[FusedPart, ...]  # modules that were exported in their inference form
    checksum: str  # SHA-256 of what decides the numbers
    versions: dict[str, str]  # of the packages that wrote it
    file_mib: float  # all files together
    kept: bool
    tolerance: float  # of the relative error
    least_cosine: float | None  # None: it was not asked for
    checks: tuple[ParityCheck, ...]
    not_checked: str | None  # why the file could not be run here; None if it was
    first_difference: FirstDifference | None  # where a file that disagrees begins to
    metric: MetricChange | None
    set_aside: tuple[str, ...]  # images that could not be read, and why
    seconds: float

    @property
    def max_relative_error(self) -> float:
        """The worst of all checks; NaN if the file could not be run here."""
        return max((check.relative_error for check in self.checks), default=float("nan"))

    @property
    def fused_parts(self) -> int:
        """How many modules were exported in their inference form."""
        return len(self.fused)

    def to_json(self) -> str:
        """All fields and the largest error as a JSON object; what is no finite number becomes null."""
        error = self.max_relative_error
        content = dataclasses.asdict(self) | {"max_relative_error": error}
        return json_text(content, indent=2, default=str)


class ExportError(RuntimeError):
    """The exported file does not give the model's numbers, or does not run; it was not kept.

    `report` is what was found until then.
    """

    def __init__(self, message: str, report: ExportReport):
        super().__init__(message)
        self.report = report
