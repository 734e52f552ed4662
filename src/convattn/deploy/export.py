"""Export with proof: a file is kept only if a runtime reads it back and gives the model's own numbers."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.export_report import ExportError, ExportReport, MetricChange
from convattn.deploy.export_request import Resolved, resolve
from convattn.deploy.first_difference import FirstDifference, NotFound, first_difference
from convattn.deploy.fuse import fuse
from convattn.deploy.gate import Agreement, Comparison, Pairing, ParityCheck, Trial, compare, trials
from convattn.deploy.inputs import random_images, read_calibration, read_photographs, times
from convattn.deploy.load import ExportedModel, load_exported
from convattn.deploy.metadata import Metadata, describe, read, seal
from convattn.deploy.quantize import QuantisedLayer
from convattn.deploy.runtimes.runtime import CannotRunHere, OpenedFile, Precision, Request, Runtime, as_list
from convattn.deploy.staging import move_in, require_space, staging
from convattn.extras import MissingExtra
from convattn.rooms import room
from convattn.sizes import Size, input_shape
from convattn.task import Metric
from convattn.walk import copied, foreign_hooks

__all__ = ["export"]

_FIGURE = Metric("metric", "the metric")  # of which nothing else is known


def export(
    model: nn.Module,
    path: str | Path,
    format: str | None = None,
    *,
    input_size: Size | None = None,
    dynamic: Dynamic | None = None,
    tolerance: float | None = None,
    precision: Precision = "fp32",
    calibration: str | Path | Tensor | Sequence[Tensor] | None = None,
    photographs: str | Path | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    figure: Metric | None = None,
    on_step: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write the inference form of `model` to a file, read it back with its runtime and compare the numbers.

    The file appears under its name only after every comparison passed; an older one there stays until then. A file
    that cannot be run on this machine is kept, and the report says why it was not checked.

    Args:
        model: any that makes one tensor of images (B, C, H, W), or several in a list, a tuple or a dict; it is left as
            it is.
        path: where to; an existing file is replaced.
        format: a name in `convattn.deploy.formats.formats()`; by default from the suffix.
        input_size: of the images to trace and check at, a side, (height, width) or (channels, height, width); by
            default what the weights expect.
        dynamic: what may differ when the file is used: "none" (a file for one image), the "batch" size, or "all"
            (batch, height and width). Every freedom granted is checked at other values too. By default "batch" where
            the format can leave it free, else "none".
        tolerance: largest relative error that counts as agreement, above 0; the cosine is then not asked for. By
            default the precision's row in `convattn.deploy.gate.TOLERANCES`.
        precision: of the file's arithmetic: "fp32", "bf16", "fp16" or "int8".
        calibration: for int8: images like those to come, a folder or prepared tensors (N, C, H, W).
        photographs: a folder of images to compare on, beside those of this package.
        metric: what a module of images is worth, such as its accuracy on labelled images. Called with the eager model
            and with the file as `load_exported` gives it.
        max_drop: by how much `metric` may get worse, in its own unit; needed with it.
        figure: title, unit and direction of what `metric` gives; by default greater is better.
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
        raise ValueError("metric and max_drop belong together: what is measured, and by how much it may get worse")
    if metric is None and figure is not None:
        raise ValueError(f"figure {figure.name} has no effect without metric, which measures it")
    _check_place(path, asked.runtime)
    _check_model(model, asked.format)
    model = copied(model).eval().cpu()  # where the runtimes are compared
    shape = input_shape(model, input_size)
    with staging(path) as folder:
        require_space(path, folder, sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())))
        job = _Job(asked, path, folder, step, started)
        prepared, proven = _prove_numbers(job, _prepare(job, model, shape, calibration, photographs))
        written = _write(job, prepared)
        exported, checks, not_checked = _check(job, prepared, written, proven)
        change = None
        if metric is not None and max_drop is not None and exported is not None:
            step("measuring the model")
            before = float(metric(model))
            step("measuring the file")
            change = MetricChange(figure or _FIGURE, before, float(metric(exported)), max_drop)
        report = _report(job, prepared, written, checks=checks, not_checked=not_checked, metric=change)
        if change is not None and not change.is_kept:
            raise ExportError(f"{path}: {change}, by more than {max_drop:g}; the file was not kept", report)
        move_in(folder, written.files, path)
    return replace(report, kept=True, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class _Job:
    """What is the same in all steps."""

    asked: Resolved
    path: Path
    folder: Path  # in which the file is made
    step: Callable[[str], None]
    started: float

    @property
    def unproven(self) -> Path:
        """The file until it is proven."""
        return self.folder / self.path.name


@dataclass(frozen=True)
class _Prepared:
    """What is written, and what it will be compared on."""

    model: nn.Module  # eager
    fused: nn.Module  # its inference form
    metadata: Metadata
    request: Request
    trials: list[Trial]
    agreement: Agreement | None
    paired: Pairing | None
    numbers: nn.Module | None  # eager; where the outputs are decisions: what is computed before them
    set_aside: tuple[str, ...]


@dataclass(frozen=True)
class _Written:
    """A file that nobody has run yet."""

    files: list[str]
    bytes: int
    metadata: Metadata  # as it is read from it
    operators: dict[str, int]
    quantisation: tuple[QuantisedLayer, ...] | None


def _prepare(
    job: _Job,
    model: nn.Module,
    shape: tuple[int, int, int],
    calibration: str | Path | Tensor | Sequence[Tensor] | None,
    folder: str | Path | None,
) -> _Prepared:
    """Run the model once, read the images and bring the model into its inference form."""
    asked = job.asked
    traced = random_images((1 if asked.dynamic == "none" else 2, *shape), seed=0)
    with torch.inference_mode():
        outputs = model(traced)  # a size that the model refuses is told before anything else is done
    as_list(outputs)
    metadata = describe(
        model,
        outputs,
        input_size=shape,
        precision=asked.precision,
        dynamic=asked.dynamic,
        format=asked.format,
        batch=len(traced),
    )
    job.step("reading images")
    seen = read_photographs(model, shape, folder)
    ranges, unread = ([], ()) if calibration is None else read_calibration(model, shape, calibration)
    task = None if metadata.task is None else room(metadata.task)
    numbers = None if task is None else task.numbers(model)
    apart = getattr(numbers, "in_float32", ())
    job.step("fusing")
    return _Prepared(
        model,
        fuse(model),
        metadata,
        Request(traced, asked.dynamic, asked.precision, ranges, in_float32=apart),
        trials(asked.dynamic, shape, seen.images),
        None if task is None else task.agreement,
        None if task is None else partial(task.paired, exact=asked.precision == "fp32"),
        None if numbers is None else numbers.eval(),
        (*seen.set_aside, *unread),
    )


def _prove_numbers(job: _Job, prepared: _Prepared) -> tuple[_Prepared, tuple[ParityCheck, ...]]:
    """Compare what a model computes before it decides, in a file of its own that is not kept.

    Returns:
        What is to be written, with what 8 bits cost in those numbers; and in what they agree. Nothing new of a model
        that does not decide, or where such a file cannot be run.
    """
    asked, numbers = job.asked, prepared.numbers
    if numbers is None:
        return prepared, ()
    job.step(f"writing the numbers as {asked.format}")
    fused = fuse(numbers)
    with tempfile.TemporaryDirectory(dir=job.folder) as place:
        path = Path(place) / job.path.name
        _written_to(path, job, fused, prepared.request)
        try:
            run = asked.runtime.open_file(path)
        except CannotRunHere:
            return prepared, ()
        job.step("comparing the numbers")
        quantisation = _quantisation(asked, path)
        nothing = _Written([], 0, prepared.metadata, {}, quantisation)
        plain = replace(prepared, model=numbers, fused=fused, agreement=None, paired=None)
        checks = _compare(job, plain, nothing, run)
    return replace(prepared, request=replace(prepared.request, quantised=quantisation)), checks


def _write(job: _Job, prepared: _Prepared) -> _Written:
    """Write the file and what belongs to it, with its description."""
    asked, file = job.asked, job.unproven
    job.step(f"writing {asked.format}")
    _written_to(file, job, prepared.fused, prepared.request, prepared.metadata)
    return _Written(
        files=sorted(entry.name for entry in job.folder.iterdir()),
        bytes=sum(part.stat().st_size for part in job.folder.rglob("*") if part.is_file()),
        metadata=read(asked.format, file),
        operators=asked.runtime.operators(file),
        quantisation=_quantisation(asked, file),
    )


def _quantisation(asked: Resolved, file: Path) -> tuple[QuantisedLayer, ...] | None:
    report = getattr(asked.runtime, "quantisation_report", None)
    return report(file) if report and asked.precision == "int8" else None


def _written_to(file: Path, job: _Job, fused: nn.Module, request: Request, metadata: Metadata | None = None) -> None:
    """Write an inference form, with its description if there is one."""
    asked = job.asked
    try:
        asked.runtime.write(fused, request, file)
        if metadata is not None:
            seal(asked.format, file, metadata)
    except OSError as error:
        raise OSError(error.errno, f"could not be written: {error.strerror or error}", str(job.path)) from None
    except (ValueError, CannotRunHere, MissingExtra):
        raise
    except Exception as error:  # whatever a converter raises
        reason = f"{asked.format} cannot hold this model: {_root_cause(error)}"
        raise ValueError(f"{job.path}: {reason}; change what it names, or choose another format") from error


def _check(
    job: _Job, prepared: _Prepared, written: _Written, before: tuple[ParityCheck, ...]
) -> tuple[ExportedModel | None, tuple[ParityCheck, ...], str | None]:
    """Compare the file with the model, as a user will run it; `before` is what was compared already.

    Returns:
        The file as a model, how it agrees, and why it could not be run.
    """
    job.step("comparing")
    try:
        exported = load_exported(job.unproven)
    except CannotRunHere as error:
        return None, (), str(error).replace(str(job.unproven), str(job.path))
    return exported, _compare(job, prepared, written, lambda images: as_list(exported(images)), before), None


def _compare(
    job: _Job, prepared: _Prepared, written: _Written, run: OpenedFile, before: tuple[ParityCheck, ...] = ()
) -> tuple[ParityCheck, ...]:
    """All checks, `before` in front; ExportError if one is no agreement, naming where the difference begins."""
    found: list[Comparison] = []
    for trial in prepared.trials:
        try:
            found += compare(prepared.model, run, [trial], prepared.agreement, prepared.paired)
        except Exception as error:  # whatever a runtime raises
            checks = (*before, *(comparison.check for comparison in found))
            raise ExportError(_refusal(job, trial, error), _report(job, prepared, written, checks=checks)) from error
    checks = (*before, *(comparison.check for comparison in found))
    failed = [comparison for comparison in found if not comparison.check.meets(job.asked.tolerance)]
    if not failed:
        return checks
    worst = max(failed, key=lambda comparison: comparison.check.relative_error)
    where: FirstDifference | str = "all that it computes before it decides agrees"
    if not before:
        where = _first_difference(job, prepared, worst.worst)
    place = where if isinstance(where, FirstDifference) else None
    report = _report(job, prepared, written, checks=checks, first_difference=place)
    raise ExportError(f"{_disagreement(job, worst.check)}; {where}", report)


def _report(
    job: _Job,
    prepared: _Prepared,
    written: _Written,
    *,
    checks: tuple[ParityCheck, ...],
    not_checked: str | None = None,
    first_difference: FirstDifference | None = None,
    metric: MetricChange | None = None,
) -> ExportReport:
    """What is known so far of a file that is not kept yet."""
    asked, metadata = job.asked, written.metadata
    return ExportReport(
        path=str(job.path),
        files=tuple(written.files),
        model=metadata.model,
        format=asked.format,
        precision=asked.precision,
        dynamic=asked.dynamic,
        input_shape=(len(prepared.request.images), *metadata.input_size),
        opset=metadata.opset,
        operators=written.operators,
        quantisation=written.quantisation,
        fused=tuple(prepared.fused.fusion_report),  # type: ignore[arg-type]
        checksum=metadata.checksum,
        versions=metadata.versions,
        file_mib=written.bytes / 2**20,
        kept=False,
        tolerance=asked.tolerance.relative_error,
        least_cosine=asked.tolerance.least_cosine,
        checks=checks,
        not_checked=not_checked,
        first_difference=first_difference,
        metric=metric,
        set_aside=prepared.set_aside,
        seconds=time.perf_counter() - job.started,
    )


def _refusal(job: _Job, trial: Trial, error: Exception) -> str:
    reason = " ".join(str(error).split()).removeprefix(f"{job.unproven}: ") or type(error).__name__
    return (
        f"{job.path}: the exported model does not run at input {times(trial.batches[0].shape)}: {reason}; "
        "the file was not kept"
    )


def _disagreement(job: _Job, check: ParityCheck) -> str:
    tolerance = job.asked.tolerance
    if check.paired is not None and check.paired < tolerance.least_paired:
        differs = f"in {100 * (1 - check.paired):.1f} % of what it finds"
        limit = f"more than {100 * (1 - tolerance.least_paired):.0f} %"
    elif not check.relative_error <= tolerance.relative_error:
        differs = f"by {check.relative_error:.2e} (relative)"
        limit = f"more than the tolerance {tolerance.relative_error:.0e}"
    else:
        differs, limit = f"with a cosine of {check.cosine:.6f}", f"less than {tolerance.least_cosine}"
    return (
        f"{job.path}: the exported model differs from the eager one {differs} on {check.images} "
        f"{times(check.input_shape)}, {limit}; the file was not kept"
    )


def _first_difference(job: _Job, prepared: _Prepared, images: Tensor) -> FirstDifference | str:
    """Which layer the difference on `images` begins in, or a clause that says why it is not known."""
    try:
        return first_difference(
            prepared.model,
            prepared.fused,
            job.asked.runtime,
            prepared.request,
            images,
            job.asked.tolerance,
            folder=job.folder,
            on_step=job.step,
        )
    except NotFound as error:
        return f"the first layer whose output differs could not be found ({error})"


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


def _check_model(model: nn.Module, format: str) -> None:
    takes: Sequence[str] = getattr(model, "formats", (format,))
    if format not in takes:
        raise ValueError(f"{format} cannot hold {type(model).__name__}; these can: {', '.join(takes)}")
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


def _root_cause(error: BaseException) -> str:
    """The first line of what the innermost error says: exporters wrap theirs in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
