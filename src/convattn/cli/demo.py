"""`convattn demo`: the whole way of a model in about a minute, on data that needs no download."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from convattn import page
from convattn.atomic import write_atomically
from convattn.bench.count import Count, count
from convattn.bench.latency import Latency, measure_latency
from convattn.classification.evaluate import Evaluation, evaluate
from convattn.classification.gallery import choose_samples, gallery
from convattn.classification.options import METRICS
from convattn.cli.console import say
from convattn.cli.options.demo import Options
from convattn.data.digits import open_digits
from convattn.data.loader import Samples, evaluation_loader
from convattn.data.transforms import PictureAlone, transforms_for
from convattn.deploy.export import export
from convattn.deploy.export_report import ExportReport
from convattn.deploy.fuse import fuse
from convattn.deploy.runtimes import onnx
from convattn.extras import require
from convattn.model_files import load_model
from convattn.recipes.smt import smt_nano_digits
from convattn.report.environment import describe_environment
from convattn.report.templates import short_count
from convattn.report.write import write_report
from convattn.training.config import RunConfig
from convattn.training.loop import Interrupted, train

__all__ = ["command"]

TARGET = 98.5  # percent of the test images that the full demo must get right

_MARKER = ".convattn-demo"  # says that a folder was written by the demo, so that the next one may replace it
_WRITTEN = {_MARKER, "report.html", "model.onnx", "run"}
_EXPLAINED_STRIDE = 4  # of the level that Grad-CAM reads: the last ones have 2 × 2 and 4 × 4 positions for a digit
_REPEATS = 100  # timed calls of each form


@dataclass(frozen=True)
class Results:
    """What the steps of the demo found."""

    config: RunConfig
    evaluation: Evaluation
    costs: Count
    exported: ExportReport
    latencies: list[Latency]
    training_seconds: float


def command(options: Options) -> int:
    """Run `convattn demo` with these options; returns the exit status."""
    start = time.perf_counter()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for package, extra in (("accelerate", "train"), ("onnxruntime", "onnx"), ("captum", "explain")):
        require(package, extra)  # before the work, not after it
    with _replacing(options.output) as folder:
        results = _run(folder, options, console)
    _print_results(options, results, time.perf_counter() - start)
    return 0


def _run(folder: Path, options: Options, console: Console) -> Results:
    """All steps, the report last."""
    config = _configure(folder, options)
    console.print("[bold]1/5[/] training smt_nano on 1,257 handwritten digits")
    started = time.perf_counter()
    try:
        train(config, console=console)
    except Interrupted:  # its advice to resume does not hold: an unfinished demo is not kept
        raise KeyboardInterrupt("interrupted; the unfinished demo was removed, start it again") from None
    training_seconds = time.perf_counter() - started
    model = load_model(folder / "run")

    with _step(console, "2/5", "evaluating on images it never saw"):
        digits = open_digits("test", _image_size(model))
        evaluation = evaluate(
            model, evaluation_loader(Samples(digits, PictureAlone(transforms_for(model))), batch_size=90)
        )
        costs = count(model)
    with _step(console, "3/5", "looking where it looks"):
        samples = choose_samples(evaluation.confidences, evaluation.predictions, evaluation.labels)
        shown = gallery(model, digits, samples, digits.classes, _explained_layer(model))
    with _step(console, "4/5", "exporting to ONNX and comparing the numbers"):
        fused = fuse(model)
        exported = export(model, folder / "model.onnx")
    with _step(console, "5/5", "measuring the speed"):
        latencies = _measure(model, fused, folder / "model.onnx")

    results = Results(config, evaluation, costs, exported, latencies, training_seconds)
    write_report(folder / "report.html", _report(options, results, shown, fused, digits.classes))
    return results


def _configure(folder: Path, options: Options) -> RunConfig:
    config = smt_nano_digits()
    if options.epochs is not None:
        warmup = min(config.schedule.warmup_epochs, max(options.epochs - 1, 0))
        config = replace(config, schedule=replace(config.schedule, epochs=options.epochs, warmup_epochs=warmup))
    return replace(
        config,
        loop=replace(config.loop, seed=options.seed),
        output=replace(config.output, folder=str(folder / "run")),
    )


def _explained_layer(model: nn.Module) -> str:
    levels: Any = model.feature_info
    return next(level["module"] for level in levels if level["reduction"] == _EXPLAINED_STRIDE)


def _image_size(model: nn.Module) -> int:
    cfg: Any = model.pretrained_cfg
    return cfg["input_size"][1]


def _measure(model: nn.Module, fused: nn.Module, exported: Path) -> list[Latency]:
    size = _image_size(model)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    session = onnx.open_file(exported)
    with torch.inference_mode():
        latencies = measure_latency(
            {"eager": lambda: model(image), "fused": lambda: fused(image)}, repeats=_REPEATS, warmup=10
        )
        # Not in turn with the others: each runtime's idle threads spin for a while, which doubles the times of both.
        return latencies + measure_latency({"ONNX Runtime": lambda: session(image)}, repeats=_REPEATS, warmup=10)


@contextmanager
def _step(console: Console, number: str, what: str) -> Iterator[None]:
    """A spinner while the step runs, and a line with its time afterwards."""
    started = time.perf_counter()
    with console.status(what):
        yield
    console.print(f"[bold]{number}[/] {what} [dim]· {time.perf_counter() - started:.1f} s[/]")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A fresh, marked folder to write to. An earlier demo there is set aside, and comes back if the work fails.

    Raises:
        ValueError: if the folder holds anything that no demo wrote.
    """
    aside = folder.with_name(f".{folder.name}.previous")
    if (aside / _MARKER).is_file():  # an earlier demo was killed; the one before it is the last whole one
        if (folder / "report.html").is_file():
            shutil.rmtree(aside)
        else:
            _check_replaceable(folder)
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
    _check_replaceable(folder)
    if folder.is_dir():
        folder.rename(aside)
    try:
        write_atomically(
            folder / _MARKER, b"Written by `convattn demo`, which replaces this folder when it runs again.\n"
        )
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if aside.is_dir():
            aside.rename(folder)
        raise
    if aside.is_dir():
        shutil.rmtree(aside)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"--output {folder} is not a folder of its own; choose another --output")
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(names - _WRITTEN) if _MARKER in names else sorted(names)
    if foreign:
        raise ValueError(
            f"--output {folder} holds {foreign[0]!r}, which the demo did not write; move it or choose another --output"
        )


def _report(
    options: Options,
    results: Results,
    shown: page.Gallery,
    fused: nn.Module,
    class_names: list[str],
) -> page.Report:
    evaluation, costs, exported = results.evaluation, results.costs, results.exported
    run = options.output / "run"
    parts: Any = fused.fusion_report
    return page.Report(
        title="smt_nano on handwritten digits",
        summary="Scale-aware modulation in the early stages, self-attention in the late ones: trained from scratch on "
        f"1,257 real handwritten digits in {results.training_seconds:.0f} seconds, and tested on "
        f"{len(evaluation.labels)} that it never saw.",
        figures=_figures(results),
        metrics=METRICS,
        epochs=page.epochs_from_log(map(json.loads, (run / "log.jsonl").read_text().splitlines())),
        confusion=page.Confusion(tuple(class_names), tuple(map(tuple, evaluation.confusion.tolist()))),
        gallery=shown,
        stages=tuple(page.StageRow(r.name, r.output_shape[1:], r.parameters, r.macs) for r in costs.rows),
        latency=tuple(page.LatencyRow(r.name, r.median_ms, r.p10_ms, r.p90_ms) for r in results.latencies),
        latency_note=f"One image of {exported.checks[0].input_shape[-1]} pixels on {torch.get_num_threads()} threads, "
        f"{_REPEATS} calls each: eager and fused in turn, then ONNX Runtime, whose threads would disturb theirs.",
        parity=page.Parity(
            exported.path,
            exported.tolerance,
            tuple(page.ParityRow(check.input_shape, check.relative_error) for check in exported.checks),
        ),
        fusion=tuple(page.FusionRow(part.name, f"{part.kind}: {part.form}") for part in parts),
        environment=describe_environment(),
        commands=_next_commands(run),
    )


def _figures(results: Results) -> tuple[page.Figure, ...]:
    accuracy = results.evaluation.top1
    low, high = results.evaluation.top1_interval
    size = results.exported.checks[0].input_shape[-1]
    eager, *_, runtime = results.latencies
    return (
        page.Figure(
            "Test accuracy",
            f"{accuracy:.2f} %",
            f"95 % interval {low:.1f}–{high:.1f}" if accuracy >= TARGET else f"below the {TARGET} % it should reach",
            is_warning=accuracy < TARGET,
        ),
        page.Figure("Parameters", short_count(results.costs.parameters)),
        page.Figure("MACs", short_count(results.costs.macs), f"one image, {size} × {size} pixels"),
        page.Figure("Training", f"{results.training_seconds:.0f} s", f"{results.config.schedule.epochs} epochs"),
        page.Figure("ONNX Runtime", f"{eager.median_ms / runtime.median_ms:.1f} ×", "as fast as eager PyTorch"),
        page.Figure(
            "Export error",
            f"{results.exported.max_relative_error:.0e}",
            f"relative; {results.exported.tolerance:.0e} allowed",
        ),
    )


def _next_commands(run: Path) -> tuple[page.Command, ...]:
    return (
        page.Command(f"convattn predict {run} IMAGE --top 3", "Ask the model about an image of your own"),
        page.Command(f"convattn eval {run} --data digits", "Evaluate it again"),
        page.Command(
            "convattn train --data DIR --output runs/mine",
            "Train on your images, in folders DIR/train/CLASS and DIR/val/CLASS",
        ),
        page.Command("convattn models", "See which other models there are"),
    )


def _print_results(options: Options, results: Results, seconds: float) -> None:
    evaluation, folder = results.evaluation, options.output
    times = {latency.name: round(latency.median_ms, 3) for latency in results.latencies}
    if options.json:
        summary = dict(
            top1=evaluation.top1,
            target=TARGET,
            is_target_reached=evaluation.top1 >= TARGET,
            test_images=len(evaluation.labels),
            parameters=results.costs.parameters,
            macs=results.costs.macs,
            latency_ms=times,
            max_relative_error=results.exported.max_relative_error,
            training_seconds=round(results.training_seconds, 2),
            seconds=round(seconds, 2),
            report=str(folder / "report.html"),
            run=str(folder / "run"),
            exported=results.exported.path,
        )
        print(json.dumps(summary))
        return
    verdict = "" if evaluation.top1 >= TARGET else f" [red]· below the {TARGET} % that the full demo should reach[/]"
    Console(highlight=False, soft_wrap=True).print(
        f"\n[bold]{evaluation.top1:.2f} %[/] of {len(evaluation.labels)} test images are right{verdict}"
    )
    say(" · ".join(f"{name} {median:.2f} ms" for name, median in times.items()) + f" · {seconds:.0f} s in all")
    say(f"report    {folder / 'report.html'}")
    say(f"model     {folder / 'run' / 'best.safetensors'} and {results.exported.path}")
    say("try next:")
    for step in _next_commands(folder / "run"):
        say(f"  {step.line}")
