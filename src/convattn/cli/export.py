"""`convattn export`: a model file for another runtime, with proof."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from convattn.cli.arguments import UsageError
from convattn.cli.console import notes, plain, print_table, say, warn
from convattn.cli.examine import examine
from convattn.cli.options.export import Options
from convattn.deploy.export import export
from convattn.deploy.export_report import ExportError, ExportReport
from convattn.deploy.export_request import resolve
from convattn.deploy.inputs import times
from convattn.deploy.quantize import QuantisedLayer
from convattn.model_files import open_model
from convattn.rooms import kind_of, room, room_of
from convattn.sizes import input_shape
from convattn.task import Table

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn export` with these options; returns the exit status."""
    asked = _check_usage(options)
    with notes().status(plain(f"opening {options.model}")) as status:
        model = open_model(options.model, pretrained=options.pretrained)
        if options.image_size is not None:
            shape = input_shape(model, options.image_size)  # images are prepared for it too
            model.pretrained_cfg = {**(model.pretrained_cfg or {}), "input_size": shape}  # type: ignore[assignment, dict-item]
        kind = kind_of(model)
        if kind is not None:
            model = room(kind).for_export(model, options)
        if asked.dynamic != "all" and hasattr(model, "fixed_size"):
            # A model that looks at images of any size is compared as the file will look: by windows of its one size.
            vars(model)["fixed_size"] = input_shape(model, options.image_size)[1:]
        measured: dict[str, Any] = {}
        if options.evaluate is not None:
            max_drop = 0.5 if options.max_drop is None else options.max_drop
            task = room_of(model, options.model)
            measured = {
                "metric": _first_metric(options.evaluate, model, options.model),
                "max_drop": max_drop,
                "figure": task.metrics[0],
            }
        try:
            report = export(
                model,
                options.path,
                options.format,
                input_size=options.image_size,
                dynamic=options.dynamic,
                tolerance=options.tolerance,
                precision=options.precision,
                calibration=options.calibration,
                photographs=options.photographs,
                on_step=lambda words: status.update(plain(f"{options.path}: {words}")),
                **measured,
            )
        except ExportError as error:
            if options.json:
                print(error.report.to_json())
            raise
    if options.json:
        print(report.to_json())
    else:
        _print(report)
    for reason in report.set_aside:
        warn(f"left out: {reason}")
    if report.not_checked is not None:
        warn(f"not checked: {report.not_checked}")
    return 0


def _check_usage(options: Options) -> Any:
    """Refuse what can be refused without looking at the model."""
    try:
        return resolve(
            options.path,
            options.format,
            dynamic=options.dynamic,
            precision=options.precision,
            tolerance=options.tolerance,
            input_size=options.image_size,
            has_calibration=options.calibration is not None,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _first_metric(source: str, model: nn.Module, name: object) -> Callable[[nn.Module], float]:
    """What a module is worth on images of which the truth is known: the first metric of the model's task."""
    task = room_of(model, name)
    options = task.words.evaluation()
    data = task.open_evaluation(source, model, options)
    told: set[str] = set()

    def metric(other: nn.Module) -> float:
        examiner = task.examine(model, data, str(name), options)
        found = examine(other, task, data, examiner, options, told=f"images of {source}")
        for file in found.unreadable.keys() - told:
            warn(f"left out: {found.unreadable[file]}")
        told.update(found.unreadable)
        return found.findings.figures()[task.metrics[0].name]

    return metric


def _print(report: ExportReport) -> None:
    opset = f", opset {report.opset}" if report.opset else ""
    say(f"{'file':<12}{report.path}: {report.format}{opset}, {report.precision}, {report.file_mib:.1f} MiB")
    if len(report.files) > 1:
        say(f"{'with':<12}{', '.join(name for name in report.files if name != Path(report.path).name)}")
    free = {"none": "nothing", "batch": "the batch size", "all": "batch, height and width"}[report.dynamic]
    say(f"{'input':<12}{times(report.input_shape)}; free: {free}")
    say(f"{'fused':<12}{report.fused_parts} parts")
    operators = sorted(report.operators.items(), key=lambda pair: (-pair[1], pair[0]))  # the most frequent first
    say(f"{'operators':<12}{', '.join(f'{count} {name}' for name, count in operators)}")
    say(f"{'checksum':<12}{report.checksum}")
    if report.quantisation is not None:
        say(f"{'quantised':<12}{_quantisation(report.quantisation)}")
    if report.not_checked is not None:
        say(f"{'NOT CHECKED':<12}{report.not_checked}")
        return
    _print_checks(report)
    cosine = "" if report.least_cosine is None else f", cosine at least {report.least_cosine:g}"
    say(f"{'agrees':<12}largest relative error {report.max_relative_error:.1e}; allowed {report.tolerance:.0e}{cosine}")
    if report.metric is not None:
        change, metric = report.metric, report.metric.metric
        figures = f"{metric.text(change.before)} before, {metric.text(change.after)} after"
        say(f"{metric.title:<12}{figures}; may get worse by {change.max_drop:g}")


def _print_checks(report: ExportReport) -> None:
    titles = list(dict.fromkeys(title for check in report.checks for title in check.agreement))
    columns = ("compared on", "images", "shape", "output", "relative error", "cosine", *titles)
    rows = []
    for check in report.checks:
        shares = [f"{100 * check.agreement[title]:.0f} %" if title in check.agreement else "-" for title in titles]
        for output in check.outputs:
            found = (output.name, f"{output.relative_error:.1e}", f"{output.cosine:.6f}")
            rows.append((check.images, str(check.count), times(check.input_shape), *found, *shares))
    print()
    print_table(Table("Checks", columns, tuple(rows), frozenset(range(1, len(columns)))))
    print()


def _quantisation(layers: Sequence[QuantisedLayer]) -> str:
    """How many layers compute with 8 bits, and the three that cost most in it."""
    quantised = [layer for layer in layers if not layer.kept]
    dearest = sorted(quantised, key=lambda layer: -layer.output_error)[:3]
    named = ", ".join(f"{layer.name} {layer.output_error:.1e}" for layer in dearest)
    return f"{len(quantised)} of {len(layers)} layers; the largest errors of the output by one: {named or 'none'}"
