"""Models in a list: with each of their weights, narrowed down, in order, counted or timed where that is asked."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import timm
import torch

from convattn.backbones.costs import Cost, cost_of
from convattn.backbones.registry import create_model, image_size_of, list_models
from convattn.bench.compare import benchmark
from convattn.bench.count import count
from convattn.bench.machine import describe_machine
from convattn.cli.arguments import UsageError
from convattn.cli.console import print_table, progress_bar, say, warn
from convattn.cli.options.models import Limits, Options, is_pattern
from convattn.json_text import json_text
from convattn.nearest import nearest
from convattn.shown import reason
from convattn.task import Table
from convattn.weights.records import OFFICIAL_WEIGHTS, PUBLISHED_RESULTS, OfficialWeights, PublishedResult

__all__ = ["Row", "print_list", "rows_of"]

_TIMM = "timm:"
_MOST = 60  # models of timm that are built for a list
_CALLS = 7  # timed, of each model

_Figure = TypeVar("_Figure")


@dataclass(frozen=True)
class Row:
    """A model with one of its weights, with an accuracy that was published without a file, or alone."""

    name: str  # as `create_model` takes it, without the tag of the weights
    image_size: int  # height and width in pixels
    record: OfficialWeights | PublishedResult | None = None
    cost: Cost | None = None  # None where nobody has counted
    latency_ms: float | None = None

    @property
    def weights(self) -> OfficialWeights | None:
        return self.record if isinstance(self.record, OfficialWeights) else None

    @property
    def top1(self) -> float | None:
        return self.record.top1 if self.record else None

    @property
    def built(self) -> tuple[str, int, int]:
        """What rows share that are of one size: name, pixels, classes."""
        return self.name, self.image_size, self.weights.num_classes if self.weights else 1000

    @property
    def full_name(self) -> str:
        """With the tag of the weights, if they have one."""
        return f"{self.name}.{self.weights.tag}" if self.weights and self.weights.tag else self.name


def print_list(options: Options) -> int:
    """Print the models that match a pattern and keep within limits, in order; returns the exit status."""
    pattern, limits = options.name, options.limits
    is_timm, rows = pattern.startswith(_TIMM), rows_of(pattern)
    if not rows:
        if not is_pattern(pattern):
            image_size_of(pattern)  # says what is wrong with the name
        hint = "no name of timm's is like it" if is_timm else nearest(pattern, list_models())
        raise UsageError(f"no model matches {pattern!r}; {hint}")
    if is_timm and (limits.min_top1 or options.sort == "top1"):
        raise UsageError(
            f"{pattern}: timm's package states no accuracies (its repository does, in results/); "
            "ask for parameters, multiply-adds, weights or latency"
        )
    found = [row for row in rows if row.weights or not limits.pretrained]
    if is_timm:
        found = _counted(found, pattern, needed=bool(limits.max_params or limits.max_macs) or options.sort != "name")
    found = [row for row in found if _is_within(row, limits)]
    if not found:
        raise ValueError(f"none of the {len({row.name for row in rows})} models that match {pattern!r} has {limits}")
    is_timed = options.sort == "latency"
    found, measured = _timed(found, options.runtime or "eager") if is_timed else (found, "")
    _print(_in_order(found, options.sort), is_timed=is_timed, as_json=options.json)
    if measured:
        (warn if options.json else say)(measured)
    return 0


def rows_of(pattern: str) -> list[Row]:
    """A row for every choice that a pattern leaves; it may name the weights too: `"smt_large.*"`."""
    rows_of_model = _timms_rows if pattern.startswith(_TIMM) else _rows
    names = list_models(f"{_TIMM}*" if pattern.startswith(_TIMM) else "*")
    rows = [row for name in names for row in rows_of_model(name)]
    return [row for row in rows if any(fnmatch.fnmatchcase(name, pattern) for name in (row.name, row.full_name))]


def _rows(name: str) -> list[Row]:
    weights = [
        Row(name, record.image_size, record, cost_of(name, record.image_size, record.num_classes))
        for record in OFFICIAL_WEIGHTS.get(name, ())
    ]
    results = [
        Row(name, record.image_size, record, cost_of(name, record.image_size))
        for record in PUBLISHED_RESULTS.get(name, ())
    ]
    size = image_size_of(name)
    return weights + results or [Row(name, size, cost=cost_of(name, size))]


def _timms_rows(name: str) -> list[Row]:
    """What timm itself knows of a model: its weights, by tag, and where they come from."""
    cfgs = timm.models.get_arch_pretrained_cfgs(name.removeprefix(_TIMM)).values()
    rows = [_timms_row(name, cfg) for cfg in cfgs if cfg.has_weights]
    return rows or [Row(name, image_size_of(name))]


def _timms_row(name: str, cfg: Any) -> Row:
    url = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url or ""
    size: dict[str, Any] = dict(image_size=cfg.input_size[-1], num_classes=cfg.num_classes)
    record = OfficialWeights(cfg.tag or "", url, source="", license=cfg.license or "", **size)
    return Row(name, record.image_size, record)


def _is_within(row: Row, limits: Limits) -> bool:
    if limits.min_top1 and (row.top1 is None or row.top1 < limits.min_top1):
        return False
    bounds = [(limits.max_params, row.cost and row.cost.parameters), (limits.max_macs, row.cost and row.cost.macs)]
    return all(most is None or (value is not None and value <= most) for most, value in bounds)


def _counted(rows: list[Row], pattern: str, *, needed: bool) -> list[Row]:
    """timm's rows with what counting gives, where they are few enough for it."""
    built = len({row.built for row in rows})
    if built > _MOST:
        too_many = f"{pattern}: timm states no parameters, and {built} models are too many to build and count"
        if needed:
            raise UsageError(f"{too_many}; narrow the pattern to {_MOST} or fewer")
        warn(f"{too_many}; {_MOST} or fewer are counted")
        return rows

    def cost(row: Row) -> Cost:
        with torch.device("meta"):
            model = create_model(row.full_name)
        counted = count(model)
        return Cost(counted.parameters, counted.macs)

    costs = _for_each("counting", rows, cost)
    return [replace(row, cost=costs.get(row.built)) for row in rows]


def _timed(rows: list[Row], runtime: str) -> tuple[list[Row], str]:
    """The rows with their latencies, and what was measured, in a line."""

    def latency(row: Row) -> float:
        table = benchmark(
            [row.full_name],
            runtimes=[runtime],
            image_sizes=[row.image_size],
            repeats=_CALLS,
            warmup=2,
            reference=None,
            memory=False,
        )
        if table.not_measured:
            raise RuntimeError(table.not_measured[0].why)
        return table.rows[0].latency.median_ms

    latencies = _for_each(f"timing, {runtime}", rows, latency)
    machine = describe_machine()
    measured = (
        f"latency: median of {_CALLS} calls, {runtime}, one image in float32, threads {machine['threads']}, "
        f"{machine['CPU']}, timed just now one model after the other; convattn bench compares more closely"
    )
    return [replace(row, latency_ms=latencies.get(row.built)) for row in rows], measured


def _for_each(what: str, rows: Sequence[Row], figure: Callable[[Row], _Figure]) -> dict[tuple[str, int, int], _Figure]:
    """A figure for each different model of the rows, with a bar on a terminal; what fails is told and left out."""
    figures: dict[tuple[str, int, int], _Figure] = {}
    models = {row.built: row for row in rows}
    with progress_bar() as progress:
        for built, row in progress.track(list(models.items()), description=what):
            try:
                figures[built] = figure(row)
            except Exception as error:  # whatever a model of timm's or a runtime raises: the others go on
                warn(f"{row.full_name}: no {what.partition(',')[0]}: {reason(error)}")
    return figures


def _in_order(rows: list[Row], by: str) -> list[Row]:
    """What is not known comes last."""
    if by == "name":
        return rows
    figures: dict[str, Callable[[Row], float | None]] = {
        "top1": lambda row: None if row.top1 is None else -row.top1,
        "params": lambda row: row.cost and row.cost.parameters,
        "latency": lambda row: row.latency_ms,
    }
    figure = figures[by]
    return sorted(rows, key=lambda row: (figure(row) is None, figure(row) or 0.0))


def _print(rows: list[Row], *, is_timed: bool, as_json: bool) -> None:
    if as_json:
        print(json_text(_as_data(rows, is_timed), indent=2))
        return
    ms = ("ms",) if is_timed else ()
    titles = ("model", "weights", "pixels", "parameters", "multiply-adds", *ms, "top-1 %", "top-5 %", "origin")
    lines = []
    for row in rows:
        cells = [row.name, _weights(row), str(row.image_size)]
        cells += [f"{row.cost.parameters:,}", f"{row.cost.macs / 1e9:.2f} G"] if row.cost else ["-", "-"]
        cells += [f"{row.latency_ms:.1f}" if row.latency_ms else "-"] if is_timed else []
        record: Any = row.record
        lines.append((*cells, f"{row.top1 or '-'}", f"{record.top5 or '-' if record else '-'}", _origin(row)))
    print_table(Table("Models", titles, tuple(lines), frozenset(range(2, len(titles) - 1))))


def _weights(row: Row) -> str:
    if row.weights is None:
        return "none published"
    return (row.weights.tag or "yes") + (", by hand" if row.weights.by_hand else "")


def _origin(row: Row) -> str:
    if row.weights and not row.weights.source:  # timm's
        return row.weights.url + (f" ({row.weights.license})" if row.weights.license else "")
    return row.record.source if row.record else "-"


def _as_data(rows: list[Row], is_timed: bool) -> list[dict[str, Any]]:
    """A row for each model, with the weights and results that the list has of it; its figures are of the first."""
    models: dict[str, dict[str, Any]] = {}
    for row in rows:
        figures: dict[str, Any] = row.cost._asdict() if row.cost else dict.fromkeys(Cost._fields)
        figures |= {"latency_ms": row.latency_ms} if is_timed else {}
        first = {"name": row.name, "image_size": row.image_size, **figures, "weights": [], "results": []}
        model = models.setdefault(row.name, first)
        if row.record:
            model["weights" if row.weights else "results"].append(asdict(row.record) | figures)
    return list(models.values())
