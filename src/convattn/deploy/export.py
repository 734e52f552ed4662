"""Export with proof: a file is kept only if a runtime reads it back and gives the model's own numbers."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.first_difference import FirstDifference, NotFound, first_difference
from convattn.deploy.formats import FORMATS, format_of
from convattn.deploy.fuse import FusedPart, fuse
from convattn.deploy.gate import TOLERANCES, Comparison, ParityCheck, Tolerance, Trial, as_list, compare, eager, trials
from convattn.deploy.inputs import random_images, read_calibration, read_photographs, times
from convattn.deploy.load import load_exported
from convattn.deploy.metadata import Metadata, describe, read, seal
from convattn.deploy.quantize import QuantisedLayer
from convattn.deploy.runtimes.runtime import CannotRunHere, Precision, Request, Run, Runtime
from convattn.deploy.staging import move_in, require_space, staging
from convattn.extras import MissingExtra
from convattn.walk import copied, foreign_hooks

__all__ = ["ExportError", "ExportReport", "MetricChange", "export", "resolve"]


@dataclass(frozen=True)
class MetricChange:
    """What the caller's metric says of the model and of the file."""

    before: float  # of the eager model
    after: float  # of the exported file
    max_drop: float  # by how much it may fall


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
        return json.dumps(_finite(content), indent=2, default=str)


class ExportError(RuntimeError):
    """The exported file does not give the model's numbers, or does not run; it was not kept.

    `report` is what was found until then.
    """

    def __init__(self, message: str, report: ExportReport):
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class _Resolved:
    """A request that can be met, as far as it can be told without the model."""

    format: str
    runtime: Runtime
    dynamic: Dynamic
    precision: Precision
    tolerance: Tolerance


def resolve(
    path: Path,
    format: str | None = None,
    *,
    dynamic: Dynamic | None = None,
    precision: Precision = "fp32",
    tolerance: float | None = None,
    input_size: tuple[int, int] | None = None,
    has_calibration: bool = False,
) -> _Resolved:
    """Fill in what is left open, and refuse what no file can be.

    Raises:
        ValueError: for what is unknown, what the format cannot do, and what has no effect.
    """
    format = format_of(path, format)
    runtime = FORMATS[format]
    for name, value, known in (("dynamic", dynamic, get_args(Dynamic)), ("precision", precision, get_args(Precision))):
        if value is not None and value not in known:
            raise ValueError(f"{name} {value!r} is unknown; choose {', '.join(known[:-1])} or {known[-1]}")
    if dynamic is None:
        dynamic = "batch" if "batch" in runtime.DYNAMIC else runtime.DYNAMIC[0]
    if dynamic not in runtime.DYNAMIC:
        raise ValueError(f"{format} cannot leave {_freedom(dynamic)} free; dynamic can be {', '.join(runtime.DYNAMIC)}")
    if precision not in runtime.PRECISIONS:
        others = [name for name, other in FORMATS.items() if precision in other.PRECISIONS]
        elsewhere = f"; {precision} can be had in {', '.join(others)}" if others else ""
        raise ValueError(f"{format} cannot be in {precision}, only in {', '.join(runtime.PRECISIONS)}{elsewhere}")
    if isinstance(input_size, int) or (input_size is not None and len(input_size) != 2):
        raise ValueError(f"input_size {input_size} must be (height, width)")
    if input_size is not None and min(input_size) < 1:
        raise ValueError(f"input_size {times(input_size)} must be at least 1 x 1")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance {tolerance} must be above 0")
    if precision == "int8" and not has_calibration:
        raise ValueError(
            "int8 needs images like those to come: --calibration DIR, in Python calibration=DIR or tensors"
        )
    if precision != "int8" and has_calibration:
        raise ValueError(f"calibration has no effect in {precision}; leave it out, or choose precision int8")
    limits = TOLERANCES[precision] if tolerance is None else Tolerance(tolerance)
    return _Resolved(format, runtime, dynamic, precision, limits)


def export(
    model: nn.Module,
    path: str | Path,
    format: str | None = None,
    *,
    input_size: tuple[int, int] | None = None,
    dynamic: Dynamic | None = None,
    tolerance: float | None = None,
    precision: Precision = "fp32",
    calibration: str | Path | Tensor | Sequence[Tensor] | None = None,
    photographs: str | Path | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    on_step: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write the inference form of `model` to a file, read it back with its runtime and compare the numbers.

    The file appears under its name only after every comparison passed; an older one there stays until then. A file
    that cannot be run on this machine is kept, and the report says why it was not checked.

    Args:
        model: a classifier, or a `features_only` model (one output per level); it is left as it is.
        path: where to; an existing file is replaced.
        format: a name in `convattn.deploy.formats.FORMATS`; by default from the suffix.
        input_size: (height, width) to trace and check at; by default what the weights expect. A model that does not say
            how many channels it takes is given 3.
        dynamic: what may differ when the file is used: "none" (a file for one image), the "batch" size, or "all"
            (batch, height and width). Every freedom granted is checked at other values too. By default "batch" where
            the format can leave it free, else "none".
        tolerance: largest relative error that counts as agreement, above 0; the cosine is then not asked for. By
            default the precision's row in `convattn.deploy.gate.TOLERANCES`.
        precision: of the file's arithmetic: "fp32", "bf16", "fp16" or "int8".
        calibration: for int8: images like those to come, a folder or prepared tensors (N, C, H, W).
        photographs: a folder of images to compare on, beside those of this package.
        metric: what a module of images is worth, such as its accuracy on labelled images; greater is better. Called
            with the eager model and with the file as `load_exported` gives it.
        max_drop: by how much `metric` may fall, in its own unit; needed with it.
        on_step: called with a few words at the beginning of each step.

    Raises:
        ValueError: for an unknown format or option, what the format cannot do, an input size that the model refuses, a
            model with hooks, or one that cannot be traced or converted.
        ExportError: if the exported file disagrees or does not run. Nothing is left behind.
        OSError: if the path cannot be written; the disk's space is looked at first.
        MissingExtra: if the runtime is not installed.
    """
    started = time.perf_counter()
    path, step = Path(path), on_step or (lambda words: None)
    asked = resolve(
        path,
        format,
        dynamic=dynamic,
        precision=precision,
        tolerance=tolerance,
        input_size=input_size,
        has_calibration=calibration is not None,
    )
    if (metric is None) != (max_drop is None):
        raise ValueError("metric and max_drop belong together: what is measured, and by how much it may fall")
    _check_place(path, asked.runtime)
    _check_model(model)
    model = copied(model).eval().cpu()  # where the runtimes are compared
    shape = _input_shape(model, input_size)
    with staging(path) as folder:
        require_space(path, folder, sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())))
        job = _Job(model, path, folder, asked, shape, step, started)
        job.prepare(calibration, photographs)
        job.write()
        job.check()
        if metric is not None and max_drop is not None:
            job.measure(metric, max_drop)
        report = job.report(kept=True)
        move_in(folder, job.files, path)
    return replace(report, seconds=time.perf_counter() - started)


class _Job:
    """One export, step by step; what is known so far is in `report()`."""

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        folder: Path,
        asked: _Resolved,
        shape: tuple[int, int, int],
        step: Callable[[str], None],
        started: float,
    ) -> None:
        self.model, self.path, self.folder, self.asked, self.shape = model, path, folder, asked, shape
        self.step, self.started = step, started
        self.unproven = folder / path.name
        self.batch = 1 if asked.dynamic == "none" else 2
        self.checks: list[ParityCheck] = []
        self.not_checked: str | None = None
        self.first_difference: FirstDifference | None = None
        self.metric: MetricChange | None = None

    def prepare(self, calibration: str | Path | Tensor | Sequence[Tensor] | None, folder: str | Path | None) -> None:
        """Run the model once, read the images and bring the model into its inference form."""
        traced = random_images((self.batch, *self.shape), seed=0)
        eager(self.model, traced)  # a size that the model refuses is told before anything else is done
        self.step("reading images")
        seen = read_photographs(self.model, self.shape, folder)
        ranges, unread = ([], ()) if calibration is None else read_calibration(self.model, self.shape, calibration)
        self.trials = trials(self.asked.dynamic, self.shape, seen.images)
        self.set_aside = (*seen.set_aside, *unread)
        self.request = Request(traced, self.asked.dynamic, self.asked.precision, ranges)
        self.step("fusing")
        self.fused = fuse(self.model)

    def write(self) -> None:
        """Write the file and what belongs to it, with its description."""
        asked = self.asked
        self.step(f"writing {asked.format}")
        metadata = describe(
            self.model,
            input_size=self.shape,
            precision=asked.precision,
            dynamic=asked.dynamic,
            format=asked.format,
            batch=self.batch,
        )
        try:
            asked.runtime.write(self.fused, self.request, self.unproven)
            seal(asked.format, self.unproven, metadata)
        except OSError as error:
            raise OSError(error.errno, f"could not be written: {error.strerror or error}", str(self.path)) from None
        except (ValueError, CannotRunHere, MissingExtra):
            raise
        except Exception as error:  # whatever a converter raises
            reason = f"{asked.format} cannot hold this model: {_root_cause(error)}"
            raise ValueError(f"{self.path}: {reason}; change what it names, or choose another format") from error
        self.files = sorted(entry.name for entry in self.folder.iterdir())
        self.bytes = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        self.metadata: Metadata = read(asked.format, self.unproven)
        self.operators = asked.runtime.operators(self.unproven)
        report = getattr(asked.runtime, "quantisation_report", None)
        self.quantisation = report(self.unproven) if report and asked.precision == "int8" else None

    def check(self) -> None:
        """Compare the file with the model, as a user will run it."""
        self.step("comparing")
        try:
            self.exported = load_exported(self.unproven)
        except CannotRunHere as error:
            self.not_checked = str(error).replace(str(self.unproven), str(self.path))
            return

        def run(images: Tensor) -> list[Tensor]:
            return as_list(self.exported(images))

        failed = [found for found in self._compare(run) if not found.check.meets(self.asked.tolerance)]
        if failed:
            worst = max(failed, key=lambda found: found.check.relative_error)
            raise ExportError(f"{self._disagreement(worst.check)}; {self._where(worst)}", self.report(kept=False))

    def measure(self, metric: Callable[[nn.Module], float], max_drop: float) -> None:
        """Apply the caller's metric to the model and to the file."""
        if self.not_checked is not None:
            return
        self.step("measuring the model")
        before = float(metric(self.model))
        self.step("measuring the file")
        after = float(metric(self.exported))
        self.metric = MetricChange(before, after, max_drop)
        if not before - after <= max_drop:
            raise ExportError(
                f"{self.path}: the metric falls from {before:.6g} to {after:.6g}, by more than {max_drop:g}; "
                "the file was not kept",
                self.report(kept=False),
            )

    def report(self, *, kept: bool) -> ExportReport:
        """What is known so far."""
        asked = self.asked
        return ExportReport(
            path=str(self.path),
            files=tuple(self.files),
            model=self.metadata.model,
            format=asked.format,
            precision=asked.precision,
            dynamic=asked.dynamic,
            input_shape=(self.batch, *self.shape),
            opset=self.metadata.opset,
            operators=self.operators,
            quantisation=self.quantisation,
            fused=tuple(self.fused.fusion_report),  # type: ignore[arg-type]
            checksum=self.metadata.checksum,
            versions=self.metadata.versions,
            file_mib=self.bytes / 2**20,
            kept=kept,
            tolerance=asked.tolerance.relative_error,
            least_cosine=asked.tolerance.least_cosine,
            checks=tuple(self.checks),
            not_checked=self.not_checked,
            first_difference=self.first_difference,
            metric=self.metric,
            set_aside=self.set_aside,
            seconds=time.perf_counter() - self.started,
        )

    def _compare(self, run: Run) -> list[Comparison]:
        found = []
        for trial in self.trials:
            try:
                (comparison,) = compare(self.model, run, [trial])
            except Exception as error:  # whatever a runtime raises
                raise ExportError(self._refusal(trial, error), self.report(kept=False)) from error
            found.append(comparison)
            self.checks.append(comparison.check)
        return found

    def _refusal(self, trial: Trial, error: Exception) -> str:
        reason = " ".join(str(error).split()).removeprefix(f"{self.unproven}: ") or type(error).__name__
        return (
            f"{self.path}: the exported model does not run at input {times(trial.batches[0].shape)}: {reason}; "
            "the file was not kept"
        )

    def _disagreement(self, check: ParityCheck) -> str:
        tolerance = self.asked.tolerance
        if not check.relative_error <= tolerance.relative_error:
            differs = f"by {check.relative_error:.2e} (relative)"
            limit = f"the tolerance {tolerance.relative_error:.0e}"
        else:
            differs, limit = f"with a cosine of {check.cosine:.6f}", f"less than {tolerance.least_cosine}"
        more = "more than " if limit.startswith("the") else ""
        return (
            f"{self.path}: the exported model differs from the eager one {differs} on {check.images} "
            f"{times(check.input_shape)}, {more}{limit}; the file was not kept"
        )

    def _where(self, worst: Comparison) -> str:
        """Which layer the difference begins in, as a clause; kept for the report."""
        asked = self.asked
        try:
            self.first_difference = first_difference(
                self.model,
                self.fused,
                asked.runtime,
                self.request,
                worst.worst,
                asked.tolerance,
                folder=self.folder,
                on_step=self.step,
            )
        except NotFound as error:
            return f"the first layer whose output differs could not be found ({error})"
        return str(self.first_difference)


def _check_place(path: Path, runtime: Runtime) -> None:
    """Refuse a folder, unless it is an older export: some formats are folders."""
    if not path.is_dir():
        return
    try:
        ours = runtime.read_metadata(path) is not None
    except Exception:  # whatever a reader makes of somebody's folder
        ours = False
    if not ours:
        raise ValueError(f"{path}: is a folder; name a file")


def _check_model(model: nn.Module) -> None:
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise ValueError("the model is compiled; export the one that it was made from")
    for name, module in model.named_modules():
        called = name or type(module).__name__
        if foreign_hooks(module):
            raise ValueError(
                f"{called} has a forward hook, which no file can hold; remove it, or make a module of what it does"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype is not torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}; export takes a float32 model: export(model.float(), ...)")


def _input_shape(model: nn.Module, input_size: tuple[int, int] | None) -> tuple[int, int, int]:
    expected: Any = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if expected is None and input_size is None:
        raise ValueError(f"{type(model).__name__} does not say what input it expects; give input_size=(height, width)")
    channels, *size = expected or (3, 0, 0)
    height, width = input_size or size
    return getattr(model, "in_chans", channels), height, width


def _root_cause(error: BaseException) -> str:
    """The first line of what the innermost error says: exporters wrap theirs in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _freedom(dynamic: Dynamic) -> str:
    return {"none": "nothing", "batch": "the batch size", "all": "batch, height and width"}[dynamic]


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
