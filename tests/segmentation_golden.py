"""Golden files of segmentation: what the field's reference computes, with weights and inputs that anyone can draw.

A file in `golden/segmentation/` holds `meta` (JSON), the state dict as `names` and `shapes`, inputs that are
kept as they are (`in_…`), and of each result its shape, sampled positions, the values there and the largest absolute
value. Everything else is drawn from names.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden_file import contents, draw

FOLDER = Path(__file__).parent / "golden" / "segmentation"


@dataclass(frozen=True)
class Golden:
    meta: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    arrays: dict[str, np.ndarray]

    @property
    def salt(self) -> str:
        return self.meta["salt"]

    def given(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"in_{name}"])

    def state(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.asarray(draw(name, shape, self.salt))) for name, shape in self.shapes.items()}

    def error(self, key: str, got: Any) -> float:
        """The largest difference over the largest absolute value; not a number only where there is none either."""
        got = torch.as_tensor(got, dtype=torch.float64).detach().numpy()
        assert got.shape == tuple(self.arrays[f"{key}_shape"]), f"{key} has shape {got.shape}"
        got, want = got.ravel()[self.arrays[f"{key}_index"]], self.arrays[f"{key}_value"]
        if not (np.isnan(got) == np.isnan(want)).all():
            return float("inf")
        gap = np.nan_to_num(np.abs(got - want), nan=0.0).max(initial=0.0)
        return float(gap / max(float(self.arrays[f"{key}_peak"]), 1e-12))


def load_golden(name: str) -> Golden:
    return Golden(*contents(FOLDER / f"{name}.npz"))


def _stream(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def levels(shapes: Any, salt: str) -> list[Tensor]:
    """Maps (B, C, H, W) of a pyramid."""
    maps = []
    for index, (batch, channels, height, width) in enumerate(shapes):
        name = f"{salt}level{index}:{batch}x{channels}x{height}x{width}"
        rows, columns = np.mgrid[0:height, 0:width]
        wave = np.sin(rows / 3.0 + index) * np.cos(columns / 4.0)
        maps.append(torch.from_numpy(_stream(name).standard_normal((batch, channels, height, width)) + wave))
    return maps


def image(batch: int, height: int, width: int, salt: str) -> Tensor:
    """Normalised images (B, 3, H, W)."""
    noise = 0.5 * _stream(f"{salt}image{batch}x{height}x{width}").standard_normal((batch, 3, height, width))
    rows, columns = np.mgrid[0:height, 0:width]
    return torch.from_numpy(noise + np.sin(rows / 7.0) + np.cos(columns / 5.0))


def labels(batch: int, height: int, width: int, classes: int, salt: str) -> Tensor:
    """Label maps (B, H, W): tiles of one class, and about 15 % of the pixels that count for nothing."""
    stream = _stream(f"{salt}labels{batch}x{height}x{width}x{classes}")
    tiles = stream.randint(0, classes, (batch, -(-height // 5), -(-width // 5)))
    found = tiles.repeat(5, 1).repeat(5, 2)[:, :height, :width].astype(np.int64)
    found[stream.uniform(size=found.shape) < 0.15] = 255
    return torch.from_numpy(found)
