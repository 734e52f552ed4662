"""Several models in several forms, timed side by side in one run."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import timm
import torch

from convattn.backbones.registry import create_model
from convattn.bench.count import count
from convattn.bench.forms import FORMS, Unavailable, prepare
from convattn.bench.latency import Latency, measure_latency

__all__ = ["BenchmarkRow", "BenchmarkTable", "benchmark"]

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BenchmarkRow:
    """One model in one form."""

    model: str
    form: str
    macs: int  # of one image
    latency: Latency

    @property
    def nanoseconds_per_mmac(self) -> float:
        """Time per million multiply-adds of one image."""
        return 1e12 * self.latency.median_ms / self.macs


@dataclass(frozen=True)
class BenchmarkTable:
    """All rows of one run, and what they were measured on."""

    rows: tuple[BenchmarkRow, ...]
    batch_size: int
    image_size: int
    precision: str
    environment: dict[str, str]
    unavailable: dict[str, str] = field(default_factory=dict)  # "model, form" -> why

    def per_mac(self, reference: str) -> dict[tuple[str, str], float]:
        """Time per multiply-add of each row over that of `reference` in eager mode, in the better of both layouts."""
        eager = ("eager", "channels_last")
        best = min(row.nanoseconds_per_mmac for row in self.rows if row.model == reference and row.form in eager)
        return {(row.model, row.form): row.nanoseconds_per_mmac / best for row in self.rows}

    def to_markdown(self, reference: str | None = None) -> str:
        """A table; with `reference`, a column of the time per multiply-add over that model's best eager layout."""
        ratios = self.per_mac(reference) if reference else {}
        title = f" | per MAC over {reference}" if reference else ""
        lines = [
            f"batch {self.batch_size}, {self.image_size} px, {self.precision}; "
            + ", ".join(f"{key} {value}" for key, value in self.environment.items()),
            "",
            f"| model | form | median ms | p10–p90 ms | faults{title} |",
            "| --- | --- | ---: | ---: | ---:" + (" | ---: |" if reference else " |"),
        ]
        for row in self.rows:
            time = row.latency
            ratio = f" | {ratios[row.model, row.form]:.2f}" if reference else ""
            faults = "-" if time.page_faults is None else f"{time.page_faults:.0f}"
            lines.append(
                f"| {row.model} | {row.form} | {time.median_ms:.1f} | {time.p10_ms:.1f}–{time.p90_ms:.1f} "
                f"| {faults}{ratio} |"
            )
        lines += [f"\n{what}: not measured, {why}" for what, why in self.unavailable.items()]
        return "\n".join(lines)


def benchmark(
    models: Sequence[str],
    *,
    forms: Sequence[str] = ("eager", "channels_last", "fused", "prepacked"),
    batch_size: int = 1,
    image_size: int = 224,
    precision: str = "fp32",
    threads: int | None = None,
    repeats: int = 30,
    warmup: int = 3,
) -> BenchmarkTable:
    """Time models side by side on this machine's CPU, with fresh weights (speed does not depend on them).

    PyTorch's forms take turns; every ONNX Runtime session is timed by itself, behind them.

    Args:
        models: names, `timm:NAME` for timm's.
        forms: ways to run each: eager, channels_last, fused, prepacked, compiled, onnxruntime.
        batch_size: images per call.
        image_size: height and width in pixels.
        precision: "fp32" or "bf16" (weights and images).
        threads: of PyTorch and ONNX Runtime; as they are set by default.
        repeats: timed calls of each.
        warmup: untimed calls of each before.

    Returns:
        Medians with their spread; a form that a model does not have stands in `unavailable` with the reason.

    Raises:
        ValueError: for an unknown model, form or precision.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(_PRECISIONS)}")
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise ValueError(f"form {unknown[0]!r} is unknown; choose among {', '.join(FORMS)}")
    if threads is not None:
        torch.set_num_threads(threads)
    images = torch.randn(batch_size, 3, image_size, image_size, dtype=_PRECISIONS[precision])
    calls: dict[str, Callable[[], object]] = {}
    macs, unavailable = {}, {}
    for name in models:
        model = create_model(name).eval().to(images.dtype)
        macs[name] = count(model, (3, image_size, image_size)).macs
        for form in forms:
            try:
                calls[f"{name}, {form}"] = prepare(model, form, images)
            except Unavailable as error:
                unavailable[f"{name}, {form}"] = str(error)
    # Idle threads of an ONNX Runtime session spin for a while and slow others down: each session is timed by itself.
    groups: dict[str, dict[str, Callable[[], object]]] = {}
    for key, call in calls.items():
        groups.setdefault(key if key.endswith(", onnxruntime") else "PyTorch", {})[key] = call
    rows = []
    for group in groups.values():
        for latency in measure_latency(group, repeats=repeats, warmup=warmup):
            name, _, form = latency.name.partition(", ")
            rows.append(BenchmarkRow(name, form, macs[name], latency))
    return BenchmarkTable(tuple(rows), batch_size, image_size, precision, _environment(), unavailable)


def _environment() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "Python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "CPU": _processor(),
    }


def _processor() -> str:
    """The processor's name and number of cores, as well as the system tells it."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    except OSError:
        pass
    return f"{name} ({os.cpu_count()} cores)"
