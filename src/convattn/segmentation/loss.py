"""What a segmenter learns by: cross entropy of every pixel, at the size of the labels.

As in github.com/open-mmlab/mmsegmentation (Apache-2.0), versions 0.11 to 1.2; written from a description.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.segmentation.confusion import IGNORED
from convattn.segmentation.resize import resized

__all__ = ["pixel_accuracy", "pixel_losses"]

_TINY = torch.finfo(torch.float32).eps  # the reference's guard against 0 / 0, in every precision


def pixel_losses(
    outputs: Mapping[str, Tensor],
    labels: Tensor,
    *,
    mean: Literal["all", "valid"] = "all",
    auxiliary_weight: float = 0.4,
) -> dict[str, Tensor]:
    """The losses of a batch by their names in logs, scalars; their sum is what the step is taken on.

    Logits are resized to the labels first. All is computed in float32 at least, under autocast too.

    Args:
        outputs: of a segmenter in training: "decode" and, of UperNet, "auxiliary", logits (B, n, h, w) each.
        labels: (B, H, W) int64, 0 to n - 1, or `IGNORED` for pixels that count for nothing.
        mean: the sum of the pixels' losses is divided by "all" pixels, ignored ones too, as published segmenters were
            trained; or by the "valid" ones alone.
        auxiliary_weight: of the loss of the second head.

    Returns:
        "decode.loss_ce", and "aux.loss_ce" where there is a second head, its weight in it.
    """
    sums = {head: _summed(logits, labels) for head, logits in outputs.items()}
    pixels: Any = labels.numel()
    if mean == "valid":
        pixels = (labels != IGNORED).sum().to(sums["decode"].dtype) + _TINY
    losses = {"decode.loss_ce": sums["decode"] / pixels}
    if "auxiliary" in sums:
        losses["aux.loss_ce"] = auxiliary_weight * sums["auxiliary"] / pixels
    return losses


@torch.no_grad()
def pixel_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the pixels that count are told rightly, in percent, a scalar; 100 where none counts.

    Args:
        logits: (B, n, h, w), resized to the labels.
        labels: as in `pixel_losses`.
    """
    logits, valid = _at(logits, labels), labels != IGNORED
    right = (logits.argmax(1) == labels) & valid
    right, counted = (each.sum().to(logits.dtype) for each in (right, valid))
    return 100 * (right + _TINY) / (counted + _TINY)


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(_at(logits, labels), labels, ignore_index=IGNORED, reduction="sum")


def _at(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits at the size of the labels, in float32 at least."""
    return resized(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.shape[-2:])
