"""The sfd score: does a network look at the object that it names?

Paper: "DAS: A Deformable Attention to Capture Salient Information in CNNs", Salajegheh et al., arXiv 2311.12091, its
section on salient feature detection. The text says what the score is for (0 to 1, near 1 where attention lies on the
object) and that Grad-CAM's weights are spread by an antilog; its two formulas and the threshold of salience are lost.
Those below are ours, and `FORMULA` has to stand beside every score.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FORMULA", "SfdScore", "mean_score", "sfd_score"]

FORMULA = (
    "sfd = Σ t(G) over the object R, over Σ t(G) over R and the salient places outside (G ≥ {salient:g}), with "
    "t(g) = (10^g - 1) / 9. The paper's own formula is lost; t, the sums and the threshold are this package's reading."
)


@dataclass(frozen=True)
class SfdScore:
    """The score of one image."""

    score: float  # 0..1; not a number without an object, or without any heat
    constant: float  # what a constant map would score, |R| / (H · W): the score grows with the object
    salient: float  # the threshold

    @property
    def formula(self) -> str:
        """How it was reckoned, for people."""
        return FORMULA.format(salient=self.salient)


def sfd_score(heat: Tensor, region: Tensor, salient: float = 0.5) -> SfdScore:
    """Of the attention on the object and on other places that stand out, the share on the object.

    Args:
        heat: G, (H, W) in 0..1, such as one map of `grad_cam`.
        region: R, (H, W) bool: where the object is, at the same size.
        salient: heat from which a place outside counts.

    Raises:
        ValueError: if the sizes differ, the heat is not in 0..1, or the threshold not above 0 and at most 1.
    """
    if heat.ndim != 2 or region.shape != heat.shape:
        raise ValueError(
            f"region has shape {tuple(region.shape)} and heat {tuple(heat.shape)}; give both as one (H, W)"
        )
    if not 0 < salient <= 1:
        raise ValueError(f"salient {salient} must be above 0 and at most 1")
    heat, region = heat.double(), region.bool().to(heat.device)
    if heat.min() < 0 or heat.max() > 1:
        raise ValueError(
            f"heat goes from {heat.min():.3g} to {heat.max():.3g}; it must lie in 0..1, as Grad-CAM's does"
        )
    spread = (torch.pow(10.0, heat) - 1) / 9
    inside = float(spread[region].sum())
    outside = float(spread[~region & (heat >= salient)].sum())
    nothing = not bool(region.any()) or not bool(heat.any())
    score = math.nan if nothing else inside / (inside + outside) if inside + outside else 0.0
    return SfdScore(score, float(region.double().mean()), salient)


def mean_score(scores: list[SfdScore]) -> tuple[float, int]:
    """The mean over images that have a score, and over how many."""
    known = [each.score for each in scores if not math.isnan(each.score)]
    return (sum(known) / len(known) if known else math.nan), len(known)
