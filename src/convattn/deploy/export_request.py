"""What is asked of an export, filled in and refused as far as it can be told without the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.formats import format_of, formats
from convattn.deploy.gate import TOLERANCES, Tolerance
from convattn.deploy.runtimes.runtime import Precision, Runtime
from convattn.sizes import Size, image_shape

__all__ = ["Resolved", "resolve"]


@dataclass(frozen=True)
class Resolved:
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
    input_size: Size | None = None,
    has_calibration: bool = False,
) -> Resolved:
    """Fill in what is left open, and refuse what no file can be.

    Raises:
        ValueError: for what is unknown, what the format cannot do, and what has no effect.
    """
    format = format_of(path, format)
    runtime = formats()[format]
    for name, value, known in (("dynamic", dynamic, get_args(Dynamic)), ("precision", precision, get_args(Precision))):
        if value is not None and value not in known:
            raise ValueError(f"{name} {value!r} is unknown; choose {', '.join(known[:-1])} or {known[-1]}")
    if dynamic is None:
        dynamic = "batch" if "batch" in runtime.DYNAMIC else runtime.DYNAMIC[0]
    if dynamic not in runtime.DYNAMIC:
        left = {"none": "nothing", "batch": "the batch size", "all": "batch, height and width"}[dynamic]
        raise ValueError(f"{format} cannot leave {left} free; dynamic can be {', '.join(runtime.DYNAMIC)}")
    if precision not in runtime.PRECISIONS:
        others = [name for name, other in formats().items() if precision in other.PRECISIONS]
        elsewhere = f"; {precision} can be had in {', '.join(others)}" if others else ""
        raise ValueError(f"{format} cannot be in {precision}, only in {', '.join(runtime.PRECISIONS)}{elsewhere}")
    if input_size is not None:
        image_shape(input_size)
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance {tolerance} must be above 0")
    if precision == "int8" and not has_calibration:
        raise ValueError(
            "int8 needs images like those to come: --calibration DIR, in Python calibration=DIR or tensors"
        )
    if precision != "int8" and has_calibration:
        raise ValueError(f"calibration has no effect in {precision}; leave it out, or choose precision int8")
    limits = TOLERANCES[precision]
    if tolerance is not None:
        limits = Tolerance(tolerance, None, limits.least_paired)
    return Resolved(format, runtime, dynamic, precision, limits)
