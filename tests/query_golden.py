"""Golden files of the query-based detectors: what the references compute, with inputs that anyone can draw.

A file in `golden/queries/` holds `meta` (JSON, with how each input is drawn), the state dict as `names` and `shapes`,
and outputs: whole (`out.NAME`), or as their shape, statistics and values at sampled places.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden_file import contents

FOLDER = Path(__file__).parent / "golden" / "queries"


@dataclass(frozen=True)
class Golden:
    meta: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> dict[str, Any]:
        return self.meta["config"]

    @property
    def names(self) -> set[str]:
        """Of all outputs."""
        return {key[4:].split("#")[0] for key in self.arrays if key.startswith("out.")}

    def state(self) -> dict[str, Tensor]:
        return {name: torch.as_tensor(_weight(name, shape, self.meta["salt"])) for name, shape in self.shapes.items()}

    def inputs(self) -> dict[str, Any]:
        found = {spec["name"]: _input(spec, self.meta["salt"]) for spec in self.meta["inputs"]}
        return {name: torch.as_tensor(x) if isinstance(x, np.ndarray) else x for name, x in found.items()}

    def error(self, name: str, got: Any) -> float:
        """The largest difference over the largest absolute value; whole numbers are equal or infinitely far."""
        value = torch.as_tensor(got).detach().numpy()
        if f"out.{name}" in self.arrays:
            want = self.arrays[f"out.{name}"]
            assert value.shape == want.shape, f"{name} has shape {value.shape}"
            if want.dtype.kind in "biu":
                return 0.0 if np.array_equal(value, want) else float("inf")
        else:
            assert value.shape == tuple(self.arrays[f"out.{name}#shape"]), f"{name} has shape {value.shape}"
            want, value = self.arrays[f"out.{name}#value"], value.ravel()[self.arrays[f"out.{name}#index"]]
        value, want = np.float64(value), np.float64(want)
        finite = np.isfinite(want)
        if not np.array_equal(value[~finite], want[~finite]) or not np.isfinite(value[finite]).all():
            return float("inf")
        gap = np.abs(value[finite] - want[finite]).max(initial=0.0)
        return float(gap / max(np.abs(want[finite]).max(initial=0.0), 1e-12))


def load_golden(name: str) -> Golden:
    return Golden(*contents(FOLDER / f"{name}.npz"))


def _stream(name: str, salt: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32((salt + name).encode()))


def _weight(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    stream, leaf = _stream(name, salt), name.rsplit(".", 1)[-1]
    if "init_proposal_bboxes" in name or "init_proposal_boxes" in name:  # centres and sizes
        return np.concatenate([stream.uniform(0.2, 0.8, (shape[0], 2)), stream.uniform(0.1, 0.9, (shape[0], 2))], 1)
    x = np.asarray(stream.standard_normal(shape))
    if any(part in name for part in ("label_enc", "label_embedding", "tgt_embed", "query_embedding")):
        return 0.5 * x
    if x.ndim >= 2:
        return x / np.sqrt(max(1, int(np.prod(shape[1:]))))
    return 1.0 + 0.1 * x if leaf == "weight" else 0.1 * x


def _input(spec: dict[str, Any], salt: str) -> Any:
    kind, stream = spec["kind"], _stream("input:" + spec["name"], salt)
    if kind == "value":
        return spec["value"]
    if kind == "boxes":  # absolute corners
        count, height, width = spec["count"], spec["height"], spec["width"]
        size = stream.uniform(0.15, 0.6, (count, 2)) * [width, height]
        low = stream.uniform(0, 1, (count, 2)) * ([width, height] - size)
        return np.concatenate([low, low + size], 1).reshape(count, 4)
    shape = tuple(spec["shape"])
    if kind == "normal":
        return spec.get("shift", 0.0) + spec.get("scale", 1.0) * stream.standard_normal(shape)
    if kind == "uniform":
        return stream.uniform(spec.get("low", 0.0), spec.get("high", 1.0), shape)
    if kind == "integer":
        return stream.randint(spec["low"], spec["high"], shape).astype(np.int64)
    if kind == "sign":
        return stream.randint(0, 2, shape) * 2.0 - 1.0
    assert kind == "padding"
    mask = np.ones(shape, dtype=bool)
    for at, (height, width) in enumerate(spec["valid"]):
        mask[at, :height, :width] = False
    return mask
