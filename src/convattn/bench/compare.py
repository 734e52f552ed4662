"""Several models in several runtimes, timed side by side in one run."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from convattn.backbones.registry import create_model, published_accuracy
from convattn.bench.count import Count, count
from convattn.bench.latency import Interrupted, Latency, check_calls, measure_latency
from convattn.bench.machine import check_threads, describe_machine, pytorch_threads
from convattn.bench.memory import MemoryMeter, cuda_peak_bytes
from convattn.bench.runtimes import (
    PYTORCH,
    Call,
    Setting,
    calls_of,
    check_runtime,
    exported_call,
    run_by,
    runtime_names,
)
from convattn.bench.table import COMPARED_WITH, BenchmarkRow, BenchmarkTable, NotMeasured
from convattn.deploy.load import ExportedModel
from convattn.model_files import is_place, open_model
from convattn.sizes import Size, input_shape

__all__ = ["benchmark", "measure_settings", "usual_size"]

_REST = 0.02  # seconds: the idle threads of other candidates have stopped spinning then


@dataclass
class _Candidate:
    """One model in one runtime, ready to run."""

    model: str
    runtime: str
    cost: Count | None  # None: of an exported file nothing can be counted
    calls: dict[str, Call]  # by layout
    path: Path | None = None  # of the file it runs


@dataclass
class _Measurements:
    """How to measure at one setting, and what is known so far."""

    setting: Setting
    repeats: int
    warmup: int
    meter: MemoryMeter | None
    progress: Callable[[str], None]
    rows: list[BenchmarkRow]
    gaps: list[NotMeasured]


def benchmark(
    models: Sequence[str],
    *,
    runtimes: Sequence[str] = ("eager", "fused", "prepacked"),
    precisions: Sequence[str] = ("fp32",),
    batch_sizes: Sequence[int] = (1,),
    image_sizes: Sequence[Size] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    repeats: int = 30,
    warmup: int = 3,
    reference: str | None = "timm:resnet50",
    memory: bool = True,
    progress: Callable[[str], None] = lambda doing: None,
) -> BenchmarkTable:
    """Time models side by side on this machine, those that are named with fresh weights: speed does not depend on them.

    PyTorch's runtimes take turns with one another, and so do the models in each other runtime, which has threads of
    its own. Set the allocator's environment for steady times (`convattn bench` does).

    Args:
        models: names (`timm:NAME` for timm's), run folders, model files and exported files. An exported file is timed
            as it is, in its own runtime whatever `runtimes` are.
        runtimes: ways to run each: eager (the better of contiguous and channels-last images), fused, prepacked,
            compile, onnxruntime, and the other formats that `export` knows. Inference forms are compiled and exported.
        precisions: fp32, bf16, fp16, int8; of weights and images in PyTorch's runtimes, of the file in the others.
        batch_sizes: images per call.
        image_sizes: each a side in pixels, (height, width) or (channels, height, width); by default `usual_size`.
        device: "cpu", or "cuda" for PyTorch's runtimes on a GPU.
        threads: of PyTorch and the other runtimes; as they are set by default.
        repeats: timed calls of each.
        warmup: untimed calls of each before.
        reference: the model that time per multiply-add is given over, measured too; None for none.
        memory: measure peak memory, each row in a process of its own.
        progress: is told what is being done.

    Returns:
        Every model in every runtime, precision, batch and image size: medians with their spread. What cannot be had, or
        fails, stands in `not_measured` with the reason.

    Raises:
        ValueError: for an unknown model, runtime or precision, or a number out of range.
        Interrupted: at Ctrl-C; a KeyboardInterrupt that has the table so far as `measured`.
    """
    settings = [
        Setting(precision, batch, size, device)
        for size, batch, precision in product(image_sizes or [usual_size(models)], batch_sizes, precisions)
    ]
    return measure_settings(
        models,
        settings,
        runtimes=runtimes,
        threads=threads,
        repeats=repeats,
        warmup=warmup,
        reference=reference,
        memory=memory,
        progress=progress,
    )


def measure_settings(
    models: Sequence[str],
    settings: Sequence[Setting],
    *,
    runtimes: Sequence[str],
    threads: int | None,
    repeats: int,
    warmup: int,
    reference: str | None,
    memory: bool,
    progress: Callable[[str], None],
) -> BenchmarkTable:
    """`benchmark` for these settings instead of all combinations."""
    models = list(dict.fromkeys([*models, *([reference] if reference else [])]))
    runtimes, settings = list(dict.fromkeys(runtimes)), list(dict.fromkeys(settings))
    files = _check(models, settings, runtimes, threads, repeats, warmup)
    named = [name for name in models if name not in files]
    rows: list[BenchmarkRow] = []
    gaps: list[NotMeasured] = []
    interrupted = False
    with pytorch_threads(threads), MemoryMeter() if memory else nullcontext() as meter:
        environment = describe_machine(settings[0].device)
        try:
            for setting in settings:
                found = _Measurements(setting, repeats, warmup, meter, progress, rows, gaps)
                for group in _groups(list(dict.fromkeys([*runtimes, *files.values()]))):
                    wanted = _candidates(named, [runtime for runtime in group if runtime in runtimes], reference)
                    _measure_group(wanted + [pair for pair in files.items() if pair[1] in group], found)
        except KeyboardInterrupt:
            interrupted = True
    order = runtime_names()
    rows.sort(key=lambda row: (settings.index(row.setting), models.index(row.model), order.index(row.runtime)))
    table = BenchmarkTable(tuple(rows), environment, reference, tuple(gaps), interrupted)
    if interrupted:
        raise Interrupted(table)
    return table


def _check(
    models: Sequence[str],
    settings: Sequence[Setting],
    runtimes: Sequence[str],
    threads: int | None,
    repeats: int,
    warmup: int,
) -> dict[str, str]:
    """Refuse a request before anything is measured; returns which models are exported files, and what runs each."""
    if not models or not runtimes or not settings:
        raise ValueError("nothing to measure: give at least one model, runtime, precision, batch and image size")
    for runtime in runtimes:
        check_runtime(runtime)
    if any(setting.device == "cuda" for setting in settings) and not torch.cuda.is_available():
        raise ValueError("device cuda: PyTorch sees no GPU here; use cpu")
    check_threads(threads)
    check_calls(repeats, warmup)
    files = {}
    for name in models:
        if is_place(name):
            model = open_model(name)
            if isinstance(model, ExportedModel):
                files[name] = run_by(model.format)
        else:
            with torch.device("meta"):
                create_model(name)
    return files


def usual_size(models: Sequence[str]) -> Size:
    """The size of images that the first model file among these takes; 224 where all are names."""
    place = next((name for name in models if is_place(name)), None)
    return 224 if place is None else input_shape(open_model(place))


def _groups(runtimes: Sequence[str]) -> list[list[str]]:
    """What is timed in turns: PyTorch's runtimes together, each other one by itself."""
    own = [runtime for runtime in runtimes if runtime in PYTORCH]
    return ([own] if own else []) + [[runtime] for runtime in runtimes if runtime not in PYTORCH]


def _candidates(models: Sequence[str], runtimes: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    """Every model in every runtime, and the reference in what its inference forms are compared with."""
    wanted = list(product(models, runtimes))
    compared = [(reference, COMPARED_WITH[runtime]) for runtime in runtimes if reference and runtime in COMPARED_WITH]
    return list(dict.fromkeys([*wanted, *compared]))


def _measure_group(wanted: Sequence[tuple[str, str]], found: _Measurements) -> None:
    """Prepare, time and weigh these models in their runtimes; what fails becomes a gap."""
    with tempfile.TemporaryDirectory(prefix="convattn-bench-") as folder:
        candidates = []
        for number, (name, runtime) in enumerate(wanted, start=1):
            found.progress(f"{found.setting}: preparing {name}, {runtime} ({number} of {len(wanted)})")
            own = Path(folder) / str(number)
            own.mkdir()
            try:
                candidates.append(_prepare(name, runtime, found.setting, own))
            except Exception as error:  # whatever a model, a converter or a runtime raises: the others are measured
                found.gaps.append(NotMeasured(name, runtime, found.setting, _first_line(error)))
        if candidates:
            _time(candidates, found)
            _weigh(candidates, found)
    if any(runtime == "compile" for _, runtime in wanted):
        torch.compiler.reset()  # its limit of variants is for the whole process


def _prepare(name: str, runtime: str, setting: Setting, folder: Path) -> _Candidate:
    model = open_model(name, pretrained=False)
    if isinstance(model, ExportedModel):
        return _Candidate(name, runtime, None, {"": exported_call(model, setting)}, model.path)
    cost = count(model, setting.shape)
    calls, path = calls_of(model, runtime, setting, folder)
    for call in calls.values():
        call()  # what cannot run says so now
    return _Candidate(name, runtime, cost, calls, path)


def _time(candidates: Sequence[_Candidate], found: _Measurements) -> None:
    """A row for every candidate, in its faster layout; at Ctrl-C for those that were timed until then."""
    named = {
        f"{index} {layout}": call
        for index, candidate in enumerate(candidates)
        for layout, call in candidate.calls.items()
    }
    found.progress(f"{found.setting}: timing {len(named)} candidates in turns, {found.repeats} times each")
    try:
        rest = _REST if len(named) > 1 else 0.0
        latencies = measure_latency(named, repeats=found.repeats, warmup=found.warmup, rest=rest)
    except Interrupted as stop:
        found.rows += _rows(candidates, stop.measured, found.setting)
        raise
    found.rows += _rows(candidates, latencies, found.setting)


def _weigh(candidates: Sequence[_Candidate], found: _Measurements) -> None:
    """The peak memory of every candidate, into the rows that were timed last."""
    if found.meter is None:
        return
    for place, candidate in enumerate(candidates, start=len(found.rows) - len(candidates)):
        row = found.rows[place]
        found.progress(f"{found.setting}: memory of {row.model}, {row.runtime}")
        found.rows[place] = replace(row, peak_bytes=_peak_bytes(candidate, row.layout, found.setting, found.meter))


def _rows(candidates: Sequence[_Candidate], latencies: Sequence[Latency], setting: Setting) -> list[BenchmarkRow]:
    fastest: dict[int, tuple[str, Latency]] = {}
    for latency in latencies:
        number, _, layout = latency.name.partition(" ")
        index = int(number)
        if index not in fastest or latency.median_ms < fastest[index][1].median_ms:
            fastest[index] = layout, latency
    return [_row(candidates[index], layout, latency, setting) for index, (layout, latency) in fastest.items()]


def _row(candidate: _Candidate, layout: str, latency: Latency, setting: Setting) -> BenchmarkRow:
    size, published = setting.image_size, None
    if isinstance(size, int) and not is_place(candidate.model):
        published = published_accuracy(candidate.model, size)
    return BenchmarkRow(
        candidate.model,
        candidate.runtime,
        setting,
        layout,
        candidate.cost.parameters if candidate.cost else None,
        candidate.cost.macs if candidate.cost else None,
        replace(latency, name=f"{candidate.model}, {candidate.runtime}"),
        top1=published.top1 if published else None,
        source=published.source if published else "",
    )


def _peak_bytes(candidate: _Candidate, layout: str, setting: Setting, meter: MemoryMeter) -> int | None:
    if setting.device == "cuda":
        size = 4 if setting.precision == "fp32" else 2
        return cuda_peak_bytes(candidate.calls[layout], size * candidate.cost.parameters if candidate.cost else 0)
    return meter.peak_bytes(candidate.model, candidate.runtime, setting, layout=layout, path=candidate.path)


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    is_said = text and isinstance(error, ValueError | RuntimeError | ImportError)
    return text if is_said else f"{type(error).__name__}: {text}"
