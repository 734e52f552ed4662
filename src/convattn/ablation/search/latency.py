"""How long networks take in the runtime that they are for, in their inference form.

What decides is the tenth percentile of the calls: what a call takes when it is hardly disturbed. On a quiet machine
that is nearly the median; where others work too, a median says more of them than of the network.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from convattn.bench.latency import Latency, measure_latency
from convattn.bench.runtimes import Setting, calls_of

__all__ = ["latencies"]

_REPEATS = 30
_REST = 0.02  # seconds between networks, as `bench` rests


def latencies(models: Mapping[str, nn.Module], runtime: str, setting: Setting) -> dict[str, Latency]:
    """Times of one call of each, in turns where there are several; of two layouts the faster one.

    Args:
        models, setting: what runs, and on what.
        runtime: of `runtime_names()`; all but `eager` run the inference form that `fuse` makes.

    Raises:
        Unavailable, MissingExtra, CannotRunHere: if the runtime cannot be had. Whatever its converter raises.
    """
    found: dict[str, Latency] = {}
    with tempfile.TemporaryDirectory(prefix="convattn-") as folder:
        calls: dict[str, Callable[[], object]] = {}
        names: dict[str, str] = {}
        for number, (name, model) in enumerate(models.items()):
            own = Path(folder) / str(number)
            own.mkdir()
            for layout, call in calls_of(model.eval(), runtime, setting, own)[0].items():
                names[f"{number} {layout}"] = name
                calls[f"{number} {layout}"] = call
        for row in measure_latency(calls, repeats=_REPEATS, rest=_REST if len(models) > 1 else 0.0):
            name = names[row.name]
            if name not in found or row.p10_ms < found[name].p10_ms:
                found[name] = row
    if runtime == "compile":
        torch.compiler.reset()  # its limit of variants is for the whole process
    return found
