"""`convattn demo`: the whole way of a model in a minute and a half, on data that needs no download."""

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
from convattn.ablation.statistics import mcnemar
from convattn.atomic import write_atomically
from convattn.bench.count import Count, count
from convattn.bench.latency import Latency, measure_latency
from convattn.bench.machine import pytorch_threads
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
from convattn.json_text import json_text
from convattn.model_files import load_model
from convattn.recipes.smt import smt_nano_digits
from convattn.report.environment import describe_environment
from convattn.report.templates import short_count
from convattn.report.write import write_report
from convattn.sizes import input_shape
from convattn.training.config import ModelConfig, RunConfig
from convattn.training.journal import read_log
from convattn.training.loop import Interrupted, train

__all__ = ["command"]

TARGET = 98.5  # percent of the test images that the full demo must get right

_MARKER = ".convattn-demo"  # says that a folder was written by the demo, so that the next one may replace it
_WRITTEN = {_MARKER, "report.html", "model.onnx", "run", "plain-cnn"}
_EXPLAINED_STRIDE = 4  # of the level that Grad-CAM reads: the last ones have 2 × 2 and 4 × 4 positions for a digit
_REPEATS = 100  # timed calls of each form

# What the hybrid is set beside: timm's ResNet-18, narrow, of its multiply-adds and parameters (a test counts both).
PLAIN_CNN = ModelConfig("timm:resnet18", options={"channels": (18, 36, 72, 144), "output_stride": 8})


@dataclass(frozen=True)
class Trained:
    """One of the two networks, and how it did."""

    name: str
    run: Path
    model: nn.Module
    training_seconds: float
    evaluation: Evaluation
    costs: Count


@dataclass(frozen=True)
class Duel:
    """Two networks on the same images."""

    only_hybrid: int  # images that the hybrid alone got right
    only_plain: int

    @property
    def p_value(self) -> float:
        """Of the exact sign test on those: how often chance alone would set them at least as far apart."""
        return mcnemar(self.only_hybrid, self.only_plain)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        counts = f"the hybrid alone is right on {self.only_hybrid}, the plain CNN alone on {self.only_plain}"
        if self.p_value >= 0.05:
            return f"{counts}: no difference that chance would not make (sign test, p = {self.p_value:.2f})"
        better = "hybrid" if self.only_hybrid > self.only_plain else "plain CNN"
        return f"{counts}: the {better} is better by more than chance makes (sign test, p = {self.p_value:.1g})"


@dataclass(frozen=True)
class Results:
    """What the steps of the demo found."""

    config: RunConfig
    hybrid: Trained
    plain: Trained
    duel: Duel
    exported: ExportReport
    latencies: list[Latency]  # of the hybrid's forms
    plain_latency: Latency  # of the plain CNN, eager


def command(options: Options) -> int:
    """Run `convattn demo` with these options; returns the exit status."""
    start = time.perf_counter()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for package, extra in (("accelerate", "train"), ("onnxruntime", "onnx"), ("captum", "explain")):
        require(package, extra)  # before the work, not after it
    # On one thread: a second gains these small networks little, and where another program is busy too the threads wait
    # for one another (7 images a second instead of 140, measured on two cores).
    with pytorch_threads(1), _replacing(options.output) as folder:
        results = _run(folder, options, console)
    _print_results(options, results, time.perf_counter() - start)
    return 0


def _run(folder: Path, options: Options, console: Console) -> Results:
    """All steps, the report last."""
    config = _configure(folder, options)
    plain_config = replace(config, model=PLAIN_CNN, output=replace(config.output, folder=str(folder / "plain-cnn")))
    console.print("[bold]1/6[/] training smt_nano on 1,257 handwritten digits")
    hybrid_seconds = _train(config, console)
    console.print("[bold]2/6[/] training a plain CNN of equal cost, a narrow ResNet-18, by the same recipe")
    plain_seconds = _train(plain_config, console)

    with _step(console, "3/6", "evaluating both on images they never saw"):
        hybrid = _evaluate("smt_nano", folder / "run", hybrid_seconds)
        plain = _evaluate("plain CNN", folder / "plain-cnn", plain_seconds)
    model = hybrid.model
    with _step(console, "4/6", "looking where the hybrid looks"):
        digits, found = open_digits("test", input_shape(model)), hybrid.evaluation
        samples = choose_samples(found.confidences, found.predictions, found.labels)
        levels: Any = model.feature_info
        layer = next(level["module"] for level in levels if level["reduction"] == _EXPLAINED_STRIDE)
        shown = gallery(model, digits, samples, digits.classes, layer)
    with _step(console, "5/6", "exporting it to ONNX and comparing the numbers"):
        fused = fuse(model)
        exported = export(model, folder / "model.onnx")
    with _step(console, "6/6", "measuring the speed"):
        *latencies, plain_latency = _measure(model, fused, folder / "model.onnx", plain.model)

    duel = _compare(hybrid.evaluation, plain.evaluation)
    results = Results(config, hybrid, plain, duel, exported, latencies, plain_latency)
    write_report(folder / "report.html", _report(options, results, shown, fused, digits.classes))
    return results


def _configure(folder: Path, options: Options) -> RunConfig:
    config = smt_nano_digits()
    if options.epochs is not None:
        warmup = min(config.schedule.warmup_epochs, max(options.epochs - 1, 0))
        config = replace(config, schedule=replace(config.schedule, epochs=options.epochs, warmup_epochs=warmup))
    loop, output = replace(config.loop, seed=options.seed), replace(config.output, folder=str(folder / "run"))
    return replace(config, loop=loop, output=output)


def _train(config: RunConfig, console: Console) -> float:
    """A run; returns its seconds."""
    started = time.perf_counter()
    try:
        train(config, console=console)
    except Interrupted:  # its advice to resume does not hold: an unfinished demo is not kept
        raise KeyboardInterrupt("interrupted; the unfinished demo was removed, start it again") from None
    return time.perf_counter() - started


def _evaluate(name: str, run: Path, training_seconds: float) -> Trained:
    model = load_model(run)
    digits = open_digits("test", input_shape(model))
    loader = evaluation_loader(Samples(digits, PictureAlone(transforms_for(model))), batch_size=90)
    return Trained(name, run, model, training_seconds, evaluate(model, loader), count(model))


def _compare(hybrid: Evaluation, plain: Evaluation) -> Duel:
    """What each gets right that the other does not."""
    right, other = (found.predictions == found.labels for found in (hybrid, plain))
    return Duel(int((right & ~other).sum()), int((other & ~right).sum()))


def _measure(model: nn.Module, fused: nn.Module, exported: Path, plain: nn.Module) -> list[Latency]:
    """Times of the hybrid's three forms and of the plain network, in turn."""
    image = torch.randn(1, *input_shape(model), generator=torch.Generator().manual_seed(0))
    session = onnx.open_file(exported)
    calls = {
        "eager": lambda: model(image),
        "fused": lambda: fused(image),
        "ONNX Runtime": lambda: session(image),
        "plain CNN": lambda: plain(image),
    }
    with torch.inference_mode():
        return measure_latency(calls, repeats=_REPEATS, warmup=10)


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

    ValueError if the folder holds anything that no demo wrote.
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
    options: Options, results: Results, shown: page.Gallery, fused: nn.Module, class_names: list[str]
) -> page.Report:
    hybrid, plain, exported = results.hybrid, results.plain, results.exported
    evaluation, costs = hybrid.evaluation, hybrid.costs
    parts: Any = fused.fusion_report
    curves = {trained.name: page.epochs_from_log(read_log(trained.run)) for trained in (hybrid, plain)}
    return page.Report(
        title="smt_nano on handwritten digits",
        summary="Scale-aware modulation in the early stages, self-attention in the late ones: trained from scratch on "
        f"1,257 real handwritten digits in {results.config.schedule.epochs} epochs ({hybrid.training_seconds:.0f} s), "
        f"tested on {len(evaluation.labels)} that it never saw, and set beside a plain CNN of equal cost.",
        figures=_figures(results),
        metrics=METRICS,
        epochs=curves[hybrid.name],
        runs=tuple(page.RunCurves(name, epochs, METRICS) for name, epochs in curves.items()),
        tables=(_beside_the_plain(results),),
        confusion=page.Confusion(tuple(class_names), tuple(map(tuple, evaluation.confusion.tolist()))),
        gallery=shown,
        stages=tuple(page.StageRow(r.name, r.output_shape[1:], r.parameters, r.macs) for r in costs.rows),
        latency=tuple(page.LatencyRow(r.name, r.median_ms, r.p10_ms, r.p90_ms) for r in results.latencies),
        latency_note=f"One image of {exported.checks[0].input_shape[-1]} pixels on one thread, {_REPEATS} calls "
        "each, in turn.",
        parity=page.Parity(
            exported.path,
            exported.tolerance,
            tuple(page.ParityRow(check.input_shape, check.relative_error) for check in exported.checks),
        ),
        fusion=tuple(page.FusionRow(part.name, f"{part.kind}: {part.form}") for part in parts),
        environment=describe_environment(),
        commands=_next_commands(options.output),
    )


def _beside_the_plain(results: Results) -> page.Table:
    """Accuracy and cost of both networks."""
    eager = results.latencies[0]
    rows = []
    for trained, latency in ((results.hybrid, eager), (results.plain, results.plain_latency)):
        low, high = trained.evaluation.top1_interval
        rows.append(
            (
                trained.name,
                f"{trained.evaluation.top1:.2f} %",
                f"{low:.1f}–{high:.1f} %",
                short_count(trained.costs.macs),
                short_count(trained.costs.parameters),
                f"{trained.training_seconds:.0f} s",
                f"{latency.median_ms:.2f} ms",
            )
        )
    return page.Table(
        "Beside a plain CNN of equal cost",
        ("Network", "Test accuracy", "95 % interval", "MACs", "Parameters", "Training", "One image, eager"),
        tuple(rows),
        frozenset(range(1, 7)),
        "A narrow ResNet-18 without attention, trained by the same recipe with the same seed. "
        f"Of {len(results.hybrid.evaluation.labels)} test images {results.duel.verdict}. One run of each on one easy "
        "set says little about others.",
    )


def _figures(results: Results) -> tuple[page.Figure, ...]:
    accuracy = results.hybrid.evaluation.top1
    low, high = results.hybrid.evaluation.top1_interval
    size = results.exported.checks[0].input_shape[-1]
    eager, *_, runtime = results.latencies
    return (
        page.Figure(
            "Test accuracy",
            f"{accuracy:.2f} %",
            f"95 % interval {low:.1f}–{high:.1f}" if accuracy >= TARGET else f"below the {TARGET} % it should reach",
            is_warning=accuracy < TARGET,
        ),
        page.Figure("Plain CNN", f"{results.plain.evaluation.top1:.2f} %", "of equal cost, by the same recipe"),
        page.Figure("Parameters", short_count(results.hybrid.costs.parameters)),
        page.Figure("MACs", short_count(results.hybrid.costs.macs), f"one image, {size} × {size} pixels"),
        page.Figure("ONNX Runtime", f"{eager.median_ms / runtime.median_ms:.1f} ×", "as fast as eager PyTorch"),
        page.Figure(
            "Export error",
            f"{results.exported.max_relative_error:.0e}",
            f"relative; {results.exported.tolerance:.0e} allowed",
        ),
    )


def _next_commands(folder: Path) -> tuple[page.Command, ...]:
    run = folder / "run"
    return (
        page.Command(f"convattn predict {run} IMAGE --top 3", "Ask the model about an image of your own"),
        page.Command(f"convattn eval {run} --data digits", "Evaluate it again"),
        page.Command(f"convattn runs {folder}", "Compare the two runs in a table and a page of curves"),
        page.Command(
            "convattn train --data DIR --output runs/mine",
            "Train on your images, in folders DIR/train/CLASS and DIR/val/CLASS",
        ),
        page.Command("convattn models", "See which other models there are"),
    )


def _print_results(options: Options, results: Results, seconds: float) -> None:
    if options.json:
        print(json_text(_summary(options, results, seconds)))
        return
    hybrid, plain, folder = results.hybrid, results.plain, options.output
    is_reached = hybrid.evaluation.top1 >= TARGET
    verdict = "" if is_reached else f" [red]· below the {TARGET} % that the full demo should reach[/]"
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"\n[bold]{hybrid.evaluation.top1:.2f} %[/] of {len(hybrid.evaluation.labels)} test images are right{verdict}"
    )
    console.print(
        f"[bold]{plain.evaluation.top1:.2f} %[/] by a plain CNN of equal cost ({short_count(plain.costs.macs)} "
        f"multiply-adds, the hybrid {short_count(hybrid.costs.macs)}), trained in {plain.training_seconds:.0f} s "
        f"beside {hybrid.training_seconds:.0f} s"
    )
    say(f"of the images {results.duel.verdict}")
    times = [*((latency.name, latency.median_ms) for latency in results.latencies)]
    times.append(("plain CNN, eager", results.plain_latency.median_ms))
    say(" · ".join(f"{name} {median:.2f} ms" for name, median in times) + f" · {seconds:.0f} s in all")
    say(f"report    {folder / 'report.html'}")
    say(f"model     {folder / 'run' / 'best.safetensors'} and {results.exported.path}")
    say("try next:")
    for step in _next_commands(folder):
        say(f"  {step.line}")


def _summary(options: Options, results: Results, seconds: float) -> dict[str, Any]:
    hybrid, plain, duel, folder = results.hybrid, results.plain, results.duel, options.output
    return dict(
        top1=hybrid.evaluation.top1,
        target=TARGET,
        is_target_reached=hybrid.evaluation.top1 >= TARGET,
        test_images=len(hybrid.evaluation.labels),
        parameters=hybrid.costs.parameters,
        macs=hybrid.costs.macs,
        latency_ms={latency.name: round(latency.median_ms, 3) for latency in results.latencies},
        max_relative_error=results.exported.max_relative_error,
        training_seconds=round(hybrid.training_seconds, 2),
        plain_cnn=dict(
            top1=plain.evaluation.top1,
            parameters=plain.costs.parameters,
            macs=plain.costs.macs,
            latency_ms=round(results.plain_latency.median_ms, 3),
            training_seconds=round(plain.training_seconds, 2),
            right_alone=duel.only_plain,
            hybrid_right_alone=duel.only_hybrid,
            p_value=duel.p_value,
            run=str(folder / "plain-cnn"),
        ),
        seconds=round(seconds, 2),
        report=str(folder / "report.html"),
        run=str(folder / "run"),
        exported=results.exported.path,
    )
