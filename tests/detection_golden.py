"""Golden files of the detectors: what mmdetection and detectron2 compute, with weights and inputs that anyone can draw.

A file in `golden/detection/` holds `meta` (JSON), small inputs, and outputs of float64 runs: whole (`NAME`), or as
statistics and values at places that follow from the size alone (`NAME_head`, `NAME_value`). Weights are drawn from
their names in the reference, pyramids and true boxes from theirs; the sampler's choice is `choose`, not chance.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from golden_file import contents, draw

FOLDER = Path(__file__).parent / "golden" / "detection"
BAR = 1e-9


@dataclass(frozen=True)
class Golden:
    meta: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    arrays: dict[str, np.ndarray]

    @property
    def salt(self) -> str:
        return self.meta["salt"]

    @property
    def names(self) -> set[str]:
        """Of all that is held."""
        return {key.removesuffix("_head").removesuffix("_value") for key in self.arrays}

    def __getitem__(self, name: str) -> Tensor:
        """An entry that is held whole."""
        return torch.from_numpy(np.array(self.arrays[name]))

    def normal(self, name: str, *shape: int) -> Tensor:
        """An input."""
        return torch.from_numpy(_stream(self.salt + name).standard_normal(shape))

    def pyramid(self, channels: Sequence[int], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """The levels of two images."""
        rows = zip(channels, sizes, strict=True)
        return [self.normal(f"level{at}", 2, width, *size) for at, (width, size) in enumerate(rows)]

    def state(self, case: str = "") -> dict[str, Tensor]:
        """The weights whose names begin so, without that."""
        return {
            name.removeprefix(case): torch.as_tensor(_weight(name, shape, self.salt))
            for name, shape in self.shapes.items()
            if name.startswith(case)
        }

    def load(self, module: nn.Module, case: str = "") -> nn.Module:
        """The module with these weights, each of them, in the reference's names."""
        module.load_state_dict(self.state(case))
        return module

    def error(self, name: str, got: Any) -> float:
        """The largest difference over the largest absolute value, also of what is held in part."""
        value = torch.as_tensor(got).detach().double().numpy()
        if name in self.arrays:
            want = np.float64(self.arrays[name])
            if want.shape == (1,) and value.ndim == 0:
                value = value.reshape(1)
            return _relative(value, want, name)
        head = self.arrays[f"{name}_head"]
        assert value.shape == tuple(int(side) for side in head[4:]), f"{name} has shape {value.shape}"
        flat = np.ascontiguousarray(value).ravel()
        places = np.random.RandomState(flat.size % 2**31).randint(0, flat.size, min(int(head[3]), flat.size))
        known = np.array([flat.mean(), flat.std(), np.abs(flat).max()])
        part = _relative(flat[np.unique(places)], self.arrays[f"{name}_value"], name)
        return max(part, _relative(known, head[:3], name))


class GivenLevels(nn.Module):
    """Stands where a backbone would."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.feature_info = [
            dict(num_chs=width, reduction=stride) for width, stride in zip(channels, strides, strict=True)
        ]


def load_golden(name: str) -> Golden:
    return Golden(*contents(FOLDER / f"det_{name}.npz"))


def assert_agrees(golden: Golden, got: dict[str, Any]) -> None:
    """Each to the bar; an empty tensor agrees by its shape."""
    errors = {name: golden.error(name, value) for name, value in got.items()}
    assert errors and max(errors.values()) < BAR, {name: error for name, error in errors.items() if not error < BAR}


def choose(candidates: Tensor, count: int) -> Tensor:
    """The golden sampler's choice, in place of chance."""
    chosen = np.sort(np.random.RandomState(len(candidates)).permutation(len(candidates))[:count])
    return candidates[torch.from_numpy(chosen)]


def true_objects(golden: Golden, image: int, count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) and labels (n,) of an image of that size."""
    stream = _stream(f"{golden.salt}gt{image}")
    side = np.exp(stream.uniform(np.log(20.0), np.log(0.9 * min(height, width)), (count, 1)))
    aspect = np.exp(stream.uniform(-0.6, 0.6, (count, 1)))
    sides = np.minimum(np.concatenate([side * aspect, side / aspect], 1), [width - 2.0, height - 2.0])
    corner = stream.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    labels = stream.randint(0, golden.meta["classes"], count).astype(np.int64)
    return torch.from_numpy(np.concatenate([corner, corner + sides], 1)), torch.from_numpy(labels)


def bitmap(box: Sequence[float], height: int, width: int) -> Tensor:
    """The mask of a box: its ellipse without the quarter below left of the centre, uint8."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    cx, cy, rx, ry = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
    return torch.from_numpy((inside & ~((x < cx) & (y > cy))).astype(np.uint8))


def bitmaps(boxes: Tensor, height: int, width: int) -> Tensor:
    """The masks of boxes, (n, H, W) uint8."""
    found = [bitmap(box, height, width) for box in boxes.tolist()]
    return torch.stack(found) if found else torch.zeros(0, height, width, dtype=torch.uint8)


def polygon(box: Sequence[float]) -> np.ndarray:
    """A 12-gon in the box's ellipse, x and y in turn."""
    angle = np.arange(12) * np.pi / 6
    x = (box[0] + box[2] + (box[2] - box[0]) * np.cos(angle)) / 2
    y = (box[1] + box[3] + (box[3] - box[1]) * np.sin(angle)) / 2
    return np.stack([x, y], 1).reshape(-1)


def _stream(text: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(text.encode()))


def _weight(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    if name.endswith(".scale"):  # of ATSS
        return 1.0 + 0.1 * np.asarray(_stream(salt + name).standard_normal(shape))
    return draw(name, shape, salt)


def _relative(got: np.ndarray, want: np.ndarray, name: str) -> float:
    assert got.shape == want.shape, f"{name} has shape {got.shape}, not {want.shape}"
    error = float(np.abs(got - want).max(initial=0.0) / max(np.abs(want).max(initial=0.0), 1e-12))
    return error if np.isfinite(error) else float("inf")
