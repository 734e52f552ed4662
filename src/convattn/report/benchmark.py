"""A benchmark as an HTML page: the front of accuracy and cost as a plot that answers, and the figures."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from convattn.atomic import write_atomically
from convattn.bench.growth import Exponent, Growth
from convattn.bench.profile import Profile
from convattn.bench.table import BenchmarkTable, figures_table
from convattn.report.templates import render_page
from convattn.task import Table

__all__ = ["growth_table", "profile_tables", "write_benchmark"]

_DEAREST = 10  # operations of a profile
_KINDS = 8  # operators of a profile


def write_benchmark(path: str | Path, table: BenchmarkTable, tables: Sequence[Table] = ()) -> None:
    """Write the page in one step, `tables` behind the figures; it needs nothing else and no network."""
    page = render_page(
        "benchmark.html",
        table=table,
        tables=[*table.tables(), *tables],
        models=list(dict.fromkeys(row.model for row in table.rows)),
        data=_data(table),
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )
    write_atomically(path, page.encode())


def growth_table(growths: Sequence[Growth]) -> Table:
    """A row a series: times, peak memory, and the exponents of time, memory and multiply-adds with their errors."""
    rows = []
    for growth in growths:
        unit = " px" if growth.over == "pixels" else ""
        at = ", ".join(map(str, growth.at))
        memory = "-" if growth.memory is None else _exponent(growth.memory)
        peaks = ["-" if peak is None else f"{peak / 2**20:.0f}" for peak in growth.peak_bytes]
        name = f"{growth.model}, {growth.runtime}, {growth.precision}"
        times = ", ".join(f"{milliseconds:.1f}" for milliseconds in growth.median_ms)
        exponents = (_exponent(growth.time), memory, f"{growth.macs.value:z.2f}")
        rows.append((name, f"{growth.over}: {at}{unit}", times, ", ".join(peaks), *exponents))
    columns = ("model", "over", "median ms", "peak MiB", "time ~", "memory ~", "multiply-adds ~")
    note = (
        "Exponents p of cost = c · xᵖ over pixels (height times width) or images, by least squares of the logarithms, "
        "with their standard errors; 1 is linear. Memory is what a call needs besides the weights."
    )
    return figures_table("How cost grows", columns, tuple(rows), words=2, note=note)


def profile_tables(name: str, profile: Profile) -> list[Table]:
    """The dearest operations of a forward pass, and the time by operator."""
    note = (
        f"Operators {profile.operations_ms:.1f} ms of a forward pass of {profile.forward_ms:.1f} ms; the rest is "
        f"Python and dispatch. Limits probed in this run: {profile.limits}. Least time is the longer of arithmetic and "
        "memory traffic at these rates; below 1 × the tensors came from a cache."
    )
    dearest = tuple(
        (
            operation.module or "(model)",
            operation.operator,
            " ".join("x".join(map(str, shape)) or "1" for shape in operation.shapes),
            str(operation.calls),
            f"{operation.milliseconds:.2f}",
            f"{100 * operation.milliseconds / profile.operations_ms:.0f}",
            f"{operation.macs / 1e6:.0f}",
            f"{operation.limit_ms:.2f}",
            f"{operation.times_limit:.1f}",
        )
        for operation in profile.operations[:_DEAREST]
    )
    kinds = []
    for operator, calls, spent, least in profile.by_operator()[:_KINDS]:
        share, over = f"{100 * spent / profile.operations_ms:.0f}", f"{spent / least:.1f}" if least else "-"
        kinds.append((operator, str(calls), f"{spent:.2f}", share, f"{least:.2f}", over))
    columns = ("operator", "calls", "ms", "% of time", "least ms", "× least")
    return [
        figures_table(
            f"Dearest operations of {name}",
            ("module", "operator", "tensors", "calls", "ms", "% of time", "MMAC", "least ms", "× least"),
            dearest,
            words=3,
            note=note,
        ),
        figures_table(f"Operators of {name}", columns, tuple(kinds)),
    ]


def _exponent(exponent: Exponent) -> str:
    return f"{exponent.value:z.2f} ± {exponent.standard_error:.2f}"


def _data(table: BenchmarkTable) -> Mapping[str, Any]:
    """What the script draws."""
    settings = table.settings()
    rows = [
        {
            "model": row.model,
            "runtime": row.runtime,
            "layout": row.layout,
            "setting": settings.index(row.setting),
            "median_ms": row.latency.median_ms,
            "p10_ms": row.latency.p10_ms,
            "p90_ms": row.latency.p90_ms,
            "p95_ms": row.latency.p95_ms,
            "images_per_second": row.images_per_second,
            "gmac": None if row.macs is None else row.macs / 1e9,
            "mparams": None if row.parameters is None else row.parameters / 1e6,
            "peak_mib": None if row.peak_bytes is None else row.peak_bytes / 2**20,
            "per_mac": table.per_mac(row),
            "top1": row.top1,
            "source": row.source,
        }
        for row in table.rows
    ]
    return {"rows": rows, "settings": [str(setting) for setting in settings], "reference": table.reference}
