"""Whether a classifier is right as often as it says it is."""

import torch
from torch import Tensor

__all__ = ["calibration_error"]


def calibration_error(confidences: Tensor, right: Tensor, bins: int = 15) -> float:
    """The expected calibration error: mean distance of confidence and accuracy, over bins of equal confidence.

        sum over bins of  (images in the bin / N) · |accuracy in the bin - mean confidence in the bin|

    Bin b holds the confidences in (b / bins, (b + 1) / bins]. Guo et al., "On Calibration of Modern Neural Networks",
    arXiv 1706.04599.

    Args:
        confidences: (N,), the probability of the predicted class.
        right: (N,) bool, whether it is the label's.
        bins: number of bins.

    Returns:
        0 (right as often as it says) to 1.
    """
    confidences = confidences.double()
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidences.device) / bins
    bin_of = torch.bucketize(confidences, edges)  # right edges belong to their bin
    # count · |accuracy - mean confidence| is the distance of the sums.
    gap = torch.zeros(bins, dtype=torch.float64, device=confidences.device)
    gap.index_add_(0, bin_of, right.double() - confidences)
    return (gap.abs().sum() / len(right)).item()
