"""The base made wider, so that a design meets a plain network of its size, or of its speed.

`options` are those with which networks are built here, such as the number of classes. A base whose width is no option,
or that cannot be had so wide, is refused with a ConfigError.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from convattn.ablation.building import build
from convattn.ablation.costs import run_once
from convattn.ablation.design import Design
from convattn.bench.latency import measure_latency
from convattn.config_errors import ConfigError

__all__ = ["at_latency", "of_equal_latency", "of_equal_parameters"]

# Options that hold the widths, with what timm's residual networks have by default.
_WIDTHS = ("dims", "conv_dims", "transformer_dims")
_TIMM_WIDTHS = {"channels": (64, 128, 256, 512)}
_STEPS = (1, 2, 4, 8, 16, 32, 40)  # widths are multiples of the first of these that the network takes
_HALVINGS = 9
_LATENCY_HALVINGS = 6
_WIDEST = 4.0
_REPEATS = 15
_REST = 0.02  # as in `costs`
_TRIES = 5  # of a width for a latency
_NEAR_ENOUGH = 0.05
_DAMPING = 0.8  # latency grows with the width, or less where overhead counts, or up to its square


def of_equal_parameters(base: Design, parameters: int, options: Mapping[str, Any]) -> Design:
    """The base, wide enough to hold about so many parameters."""

    def size(design: Design) -> float:
        return sum(parameter.numel() for parameter in build(design, meta=True, **options).parameters())

    design, reached = _widened(base, options, size, parameters, _HALVINGS)
    note = f"{reached:,.0f} parameters for {parameters:,}"
    return _control("base, equal parameters", design, note)


def of_equal_latency(base: Design, target: Design, options: Mapping[str, Any], image_size: Any = None) -> Design:
    """The base, wide enough to take about as long as `target` for one image, each width timed in turn with it."""
    slow = _sized(build(target, **options), image_size)

    def share(design: Design) -> float:
        candidate = _sized(build(design, **options), image_size)
        rows = measure_latency(
            {"target": lambda: run_once(slow), "candidate": lambda: run_once(candidate)}, repeats=_REPEATS, rest=_REST
        )
        return rows[1].median_ms / rows[0].median_ms

    design, reached = _widened(base, options, share, 1.0, _LATENCY_HALVINGS)
    return _control("base, equal latency", design, f"{reached:.2f} times the latency of {target.name}")


def at_latency(base: Design, limit_ms: float, measure: Callable[[Design], float], options: Mapping[str, Any]) -> Design:
    """The base, wide or narrow enough to take about so many milliseconds, and how near it came in its note."""
    widths = _widths(base, options)
    scale, tried = 1.0, list[tuple[Design, float]]()
    for _ in range(_TRIES):
        design = _first_that_builds(base, widths, scale, options)
        if any(design.options == known.options for known, _ in tried):
            break
        tried.append((design, measure(design)))
        miss = limit_ms / tried[-1][1]
        if abs(miss - 1) < _NEAR_ENOUGH:
            break
        scale = min(_WIDEST, max(1 / _WIDEST, scale * miss**_DAMPING))
    best, reached = min(tried, key=lambda pair: abs(pair[1] - limit_ms))
    return replace(base, options=best.options, note=f"its width is scaled: {reached:.2f} ms for {limit_ms:g} ms")


def _sized(model: Any, image_size: Any) -> nn.Module:
    if image_size is not None:
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        model.pretrained_cfg = {**(model.pretrained_cfg or {}), "input_size": (3, *sides)}
    return model.eval()


def _control(name: str, design: Design, note: str) -> Design:
    return Design(name, design.model, design.options, design.plug_ins, role="control", note=note)


def _widened(
    base: Design, options: Mapping[str, Any], size: Callable[[Design], float], wanted: float, halvings: int
) -> tuple[Design, float]:
    """The width whose size is nearest to what is wanted, by halving."""
    widths = _widths(base, options)
    for step in _STEPS:
        try:
            best = base, size(base)
            top = size(_scaled(base, widths, _WIDEST, step))
        except ValueError:  # these widths do not divide as they must
            continue
        if best[1] >= wanted:
            raise ConfigError(
                f"{base.name} is as large as {wanted:,.3g} already ({best[1]:,.3g}), so it is not widened"
            )
        if top < wanted:
            raise ConfigError(f"{base.name} does not reach {wanted:,.3g} at {_WIDEST:g} times its width ({top:,.3g})")
        low, high = 1.0, _WIDEST
        for _ in range(halvings):
            middle = (low + high) / 2
            try:
                candidate = _scaled(base, widths, middle, step)
                found = size(candidate)
            except ValueError:
                break
            if abs(found - wanted) < abs(best[1] - wanted):
                best = candidate, found
            low, high = (middle, high) if found < wanted else (low, middle)
        else:
            return best
    raise ConfigError(f"{base.model} takes no other widths")


def _first_that_builds(
    base: Design, widths: Mapping[str, tuple[int, ...]], scale: float, options: Mapping[str, Any]
) -> Design:
    """The base at a scale of its widths, in the smallest step that it takes."""
    for step in _STEPS:
        design = _scaled(base, widths, scale, step)
        try:
            build(design, meta=True, **options)
        except ValueError:  # these widths do not divide as they must
            continue
        return design
    raise ConfigError(f"{base.model} takes no other widths")


def _widths(base: Design, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Option -> the base's widths."""
    model: Any = build(base, meta=True, **options)
    cfg = getattr(model, "cfg", None)
    found = {name: tuple(getattr(cfg, name)) for name in _WIDTHS if hasattr(cfg, name)}
    if not found:
        levels = tuple(info["num_chs"] for info in getattr(model, "feature_info", ()))
        for name, usual in (_TIMM_WIDTHS if base.model.startswith("timm:") else {"dims": levels}).items():
            given = {**base.options, name: usual} if name not in base.options else dict(base.options)
            try:
                build(Design(base.name, base.model, given), meta=True, **options)
            except (TypeError, ValueError):
                continue
            found = {name: tuple(given[name])}
    if not found:
        raise ConfigError(f"{base.model} has no option for its widths, so it cannot be widened")
    return found


def _scaled(base: Design, widths: Mapping[str, tuple[int, ...]], scale: float, step: int) -> Design:
    wide = {
        name: tuple(max(step, round(width * scale / step) * step) for width in those) for name, those in widths.items()
    }
    return Design(base.name, base.model, {**base.options, **wide}, base.plug_ins)
