"""The gate: the outputs of an exported file beside those of the eager model, and what counts as agreement."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.inputs import random_images
from convattn.deploy.runtimes.runtime import OpenedFile, Precision, as_list, is_pyramid, output_names
from convattn.task import Pairs

__all__ = [
    "TOLERANCES",
    "Agreement",
    "Comparison",
    "OutputCheck",
    "Pairing",
    "ParityCheck",
    "Tolerance",
    "Trial",
    "compare",
    "compare_outputs",
    "eager",
    "relative_error",
    "trials",
    "worst_error",
]

Kind = Literal["photographs", "random"]

# What the file gives and what the model gives -> how often both say the same, 0 to 1 by title; see `TaskRoom`.
Agreement = Callable[[Sequence[Tensor], Sequence[Tensor]], dict[str, float]]
Pairing = Callable[[Sequence[Tensor], Sequence[Tensor]], Pairs | None]


@dataclass(frozen=True)
class Tolerance:
    """What counts as agreement; both are to be met by every output on every input."""

    relative_error: float  # largest max|exported - eager| / max|eager|
    least_cosine: float | None = None  # least cosine of the angle between the outputs for one image; None does not ask
    least_paired: float = 0.0  # least share of what was found that both found, where a task has its findings paired


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-4, None, 0.95),
    "bf16": Tolerance(5e-2, 0.999, 0.8),
    "fp16": Tolerance(2e-2, 0.999, 0.9),
    "int8": Tolerance(1e-1, 0.99, 0.7),
}


@dataclass(frozen=True)
class OutputCheck:
    """One output of the file beside the eager model's."""

    name: str  # see `output_names`
    relative_error: float  # see `relative_error`; of whole numbers the share of those that differ
    cosine: float  # the least over the images

    def meets(self, tolerance: Tolerance) -> bool:
        """Whether this is agreement."""
        near = self.relative_error <= tolerance.relative_error
        return near and (tolerance.least_cosine is None or self.cosine >= tolerance.least_cosine)


@dataclass(frozen=True)
class ParityCheck:
    """The exported file beside the eager model on inputs of one kind and shape."""

    images: Kind
    count: int  # how many images
    input_shape: tuple[int, ...]  # (B, C, H, W) of one run
    outputs: tuple[OutputCheck, ...]
    relative_error: float  # the worst of the outputs
    cosine: float  # the worst of the outputs
    agreement: dict[str, float]  # how often both say the same, in terms of the model's task; nothing without one
    paired: float | None = None  # the least share of what was found in a batch that both found; None: nothing is paired

    def meets(self, tolerance: Tolerance) -> bool:
        """Whether all outputs agree, and enough of what was found is in both."""
        enough = self.paired is None or self.paired >= tolerance.least_paired
        return enough and all(output.meets(tolerance) for output in self.outputs)


@dataclass(frozen=True)
class Trial:
    """Inputs of one kind and shape."""

    images: Kind
    batches: tuple[Tensor, ...]  # each (B, C, H, W), B ≥ 1 the same for all


@dataclass(frozen=True)
class Comparison:
    """A check and the batch (B, C, H, W) on which it came out worst."""

    check: ParityCheck
    worst: Tensor


def trials(dynamic: Dynamic, shape: tuple[int, int, int], photographs: Tensor) -> list[Trial]:
    """What a file, once opened, is tried on in turn: the traced shape, and others where it promises to take them.

    A runtime may keep what it made for earlier shapes. So every size is tried in several batches, each behind another,
    and the traced shape (channels, height, width) and the first other size come a second time at the end. `photographs`
    (N, C, H, W) have that shape.
    """
    batch = 1 if dynamic == "none" else 2
    traced = [
        Trial("photographs", _in_batches(photographs, batch)),
        Trial("random", (random_images((batch, *shape), 1), random_images((batch, *shape), 2))),
    ]
    if dynamic == "none":
        return traced
    tried = [*traced, Trial("photographs", _in_batches(photographs[:2], 1)), *_other_batches(shape, 0)]
    if dynamic == "batch":
        return [*tried, traced[1]]
    others = []
    for number, size in enumerate(_other_sizes(*shape[1:])):
        resized = F.interpolate(photographs[:2], size, mode="bicubic", antialias=True, align_corners=False)
        others += [Trial("photographs", (resized,)), *_other_batches((shape[0], *size), 10 + 10 * number)]
    return [*tried, *others, traced[1], others[0]]


def compare(
    model: nn.Module,
    exported: OpenedFile,
    tried: Sequence[Trial],
    agreement: Agreement | None = None,
    paired: Pairing | None = None,
) -> Iterator[Comparison]:
    """One check a trial, in order, of a model in evaluation mode; without `paired` outputs are compared as they are."""
    for trial in tried:
        found = [
            _compared(exported(images), _outputs(model, images), model, agreement, paired) for images in trial.batches
        ]
        outputs = tuple(
            OutputCheck(same[0].name, max(each.relative_error for each in same), min(each.cosine for each in same))
            for same in zip(*(one.outputs for one in found), strict=True)  # the same output on all batches
        )
        shares = [one.paired for one in found if one.paired is not None]
        check = ParityCheck(
            images=trial.images,
            count=sum(len(images) for images in trial.batches),
            input_shape=tuple(trial.batches[0].shape),
            outputs=outputs,
            relative_error=max(output.relative_error for output in outputs),
            cosine=min(output.cosine for output in outputs),
            agreement=_mean([one.agreement for one in found]),
            paired=min(shares, default=None),
        )
        worst = [(-(one.paired or 0.0), max(output.relative_error for output in one.outputs)) for one in found]
        yield Comparison(check, trial.batches[worst.index(max(worst))])


def eager(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs of `model`, in order."""
    return as_list(_outputs(model, images))


def compare_outputs(got: Sequence[Tensor], want: Any, of_several: str = "output") -> list[OutputCheck]:
    """One check an output of what the file gives, in order, beside what the model gives.

    Raises:
        ValueError: if their number differs.
        TypeError: as `as_list`.
    """
    listed = as_list(want)
    if len(got) != len(listed):
        raise ValueError(f"the file gives {len(got)} outputs and the model {len(listed)}")
    return [_check(*three) for three in zip(output_names(want, of_several), got, listed, strict=True)]


@dataclass(frozen=True)
class _Compared:
    """One batch."""

    outputs: list[OutputCheck]
    agreement: dict[str, float]
    paired: float | None = None


def _compared(
    got: list[Tensor], want: Any, model: nn.Module, agreement: Agreement | None, paired: Pairing | None
) -> _Compared:
    several = "level" if is_pyramid(model) else "output"
    checks, listed = compare_outputs(got, want, several), as_list(want)
    if any(one.shape != other.shape for one, other in zip(got, listed, strict=True)):
        return _Compared(checks, {})
    shares = {} if agreement is None else agreement(got, listed)
    pairs = None if paired is None else paired(got, listed)
    if pairs is None:
        return _Compared(checks, shares)
    rows = zip(output_names(want, several), pairs.got, pairs.want, pairs.scales, strict=True)
    return _Compared([_check(*four) for four in rows], shares, pairs.share)


def _outputs(model: nn.Module, images: Tensor) -> Any:
    with torch.inference_mode():
        return model(images)


def _check(name: str, got: Tensor, want: Tensor, scale: float | None = None) -> OutputCheck:
    if got.shape != want.shape:
        return OutputCheck(name, float("inf"), -1.0)
    if not want.is_floating_point():  # classes: one beside the right one is as wrong as any other
        differ = (got.double() != want.double()).double().mean().item() if got.numel() else 0.0
        return OutputCheck(name, differ, 1.0 - differ)
    got, want = got.double(), want.double()
    return OutputCheck(name, relative_error(got, want, scale), _cosine(got, want))


def relative_error(got: Tensor, want: Tensor, scale: float | None = None) -> float:
    """max|got - want| / max|want|, or / `scale`, of two tensors of one shape in float64; infinite where a NaN is."""
    difference = torch.where(got == want, 0.0, (got - want).abs())  # an infinity that both have agrees
    if not got.numel():
        return 0.0
    peak = torch.where(want.isfinite(), want.abs(), 0.0).max().clamp_min(1e-30).item() if scale is None else scale
    error = difference.max().item() / peak
    return error if error == error else float("inf")  # NaN never agrees


def worst_error(got: Any, want: Any) -> float:
    """The greatest `relative_error` of the tensors anywhere in what two networks gave; ValueError if not as many."""
    pairs = zip(tree_leaves(got), tree_leaves(want), strict=True)
    return max(
        (relative_error(one.double(), told.double()) for one, told in pairs if isinstance(told, Tensor)), default=0.0
    )


def _cosine(got: Tensor, want: Tensor) -> float:
    """The least over the first axis; of two vectors of zeros 1."""
    if torch.equal(got, want):
        return 1.0
    both = got.isinf() & (got == want)
    got, want = got.masked_fill(both, 0.0), want.masked_fill(both, 0.0)
    got, want = got.reshape(len(got), -1), want.reshape(len(want), -1)
    least = F.cosine_similarity(got, want, dim=1, eps=1e-300).min().item()
    return min(least, 1.0) if least == least else -1.0


def _mean(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several batches of one size, by title."""
    titles = [title for title in shares[0] if all(title in each for each in shares)]
    return {title: sum(each[title] for each in shares) / len(shares) for title in titles}


def _in_batches(images: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Cut into batches of one size; the last is filled up from the beginning."""
    missing = -len(images) % batch
    return torch.cat([images, images[:missing]]).split(batch)


def _other_batches(shape: tuple[int, int, int], seed: int) -> list[Trial]:
    return [Trial("random", (random_images((batch, *shape), seed + 2 + batch),)) for batch in (1, 3)]


def _other_sizes(height: int, width: int) -> list[tuple[int, int]]:
    sizes = [(height + 32, width), (height + 5, width + 17)]
    if min(height, width) >= 128:  # below, a network may refuse what is smaller
        sizes.append((height * 3 // 4, width * 3 // 4))
    return sizes
