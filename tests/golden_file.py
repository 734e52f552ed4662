"""Golden files: what a reference implementation computes with weights and an input that anyone can draw again.

A file in `golden/` was written by the authors' formulation of one model in float64, with every weight drawn from its
name and shape alone. Nothing trained is in it. The same weights under the same names and the same input must give the
same numbers in any implementation.

Keys: `names`, `shapes` (the authors' state dict), `meta` (JSON), `logits`, and sampled positions of each pyramid level
(`feat{i}_index`, `_value`, `_shape`, `_stats`) and of the input's gradient of `(logits ** 2).sum() / 2` (`grad_*`).
`*_stats` are mean, standard deviation and largest absolute value.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import convattn
from toys import relative_error

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """A golden file: its arrays, and the state dict and images that belong to it, in float64."""

    arrays: dict[str, np.ndarray]
    state: dict[str, Tensor]
    images: Tensor


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """Any golden file: what is told of it, the reference's state dict as name -> shape, and the arrays."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    names, shapes = (arrays.pop(key, np.array([])).tolist() for key in ("names", "shapes"))
    sizes = [tuple(int(side) for side in shape.split("x")) if shape else () for shape in shapes]
    return json.loads(str(arrays.pop("meta"))), dict(zip(names, sizes, strict=True)), arrays


def load_golden(name: str) -> Golden:
    meta, shapes, arrays = contents(FOLDER / f"{name}.npz")
    salt = meta["salt"]
    state = {key: torch.from_numpy(np.asarray(draw(key, shape, salt))) for key, shape in shapes.items()}
    return Golden(arrays, state, torch.from_numpy(image(meta["batch"], meta["height"], meta["width"], salt)))


def golden_errors(name: str, dtype: torch.dtype) -> dict[str, float]:
    """The largest difference of each stored tensor from ours, over that tensor's largest absolute value."""
    golden = load_golden(name)
    want = golden.arrays
    model = convattn.create_model(name).to(dtype).eval().requires_grad_(False)  # that of the images is compared
    convattn.load_official(model, {key: t.to(dtype) if t.is_floating_point() else t for key, t in golden.state.items()})
    images = golden.images.to(dtype).requires_grad_()
    final, levels = model.forward_intermediates(images)
    levels = [level for level, info in zip(levels, model.feature_info, strict=True) if info["reduction"] >= 4]
    logits = model.forward_head(final)
    (gradient,) = torch.autograd.grad(logits.square().sum() / 2, images)

    errors = {"logits": relative_error(logits, torch.from_numpy(want["logits"]))}
    sampled = {f"feat{index}": level for index, level in enumerate(levels)} | {"grad": gradient}
    for key, tensor in sampled.items():
        if key != "grad":
            assert tensor.shape == tuple(want[f"{key}_shape"])
        got = tensor.detach().double().flatten()[torch.from_numpy(want[f"{key}_index"])]
        errors[key] = float((got - torch.from_numpy(want[f"{key}_value"])).abs().max() / want[f"{key}_stats"][2])
    return errors


def smooth_float32_errors(name: str) -> dict[str, float]:
    """How far float32 is from float64 in our model with smooth parts, on a corner of the golden images.

    Softplus stands for ReLU and a mean for a maximum. Where rounding moves a value across the kink of a ReLU, or the
    largest of a pool to its neighbour, a gradient takes another path; that is no inaccuracy, and hides any.
    """
    golden = load_golden(name)
    model = convattn.create_model(name).eval()
    convattn.load_official(model, golden.state)
    model = smooth(model)
    return float32_errors(model, golden.images[:1, :, :96, :112].float())


def smooth(model: nn.Module) -> nn.Module:
    """The model with softplus for ReLU and means for maxima, changed in place."""
    for name, child in model.named_children():
        if isinstance(child, nn.ReLU | nn.ReLU6):
            setattr(model, name, nn.Softplus())
        elif isinstance(child, nn.MaxPool2d):
            setattr(model, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
        smooth(child)
    return model


def float32_errors(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Relative errors of a float32 model's logits, and of the input gradient, from its own in float64."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        model, images = model.to(dtype), images.detach().to(dtype).requires_grad_()
        logits = model(images)
        found[dtype] = logits, torch.autograd.grad(logits.square().sum() / 2, images)[0]
    pairs = zip(("logits", "grad"), found[torch.float32], found[torch.float64], strict=True)
    return {key: relative_error(got, want) for key, got, want in pairs}


def official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The authors' state dict of a model: name -> shape, in its order."""
    return contents(FOLDER / f"{name}.npz")[1]


def draw(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """The value of one state entry; NumPy has frozen this stream, so it depends on name, shape and salt alone."""
    stream = np.random.RandomState(zlib.crc32((salt + name).encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    x = stream.standard_normal(shape)
    if leaf == "running_var":
        return 1.0 + 0.25 * np.abs(x)
    if leaf == "running_mean":
        return 0.1 * x
    if x.ndim >= 2:  # convolutions and linear layers: activations stay near unit scale
        return x / np.sqrt(max(1, int(np.prod(shape[1:]))))
    if leaf == "weight":  # scale of a norm
        return 1.0 + 0.1 * x
    if leaf.startswith("gamma"):  # layer scale
        return 0.5 + 0.1 * x
    return 0.1 * x


def image(batch: int, height: int, width: int, salt: str) -> np.ndarray:
    """Images (batch, 3, height, width) of smooth and fine structure, about unit scale."""
    stream = np.random.RandomState(zlib.crc32((salt + f"image{batch}x{height}x{width}").encode()))
    y, x = np.mgrid[0:height, 0:width] / 32.0
    images = 0.5 * stream.standard_normal((batch, 3, height, width))
    phase = stream.uniform(0, 2 * np.pi, (batch, 3, 2))
    for b in range(batch):
        for c in range(3):
            images[b, c] += np.sin(x * (c + 1) + phase[b, c, 0]) + np.cos(y * (3 - c) + phase[b, c, 1])
    return images
