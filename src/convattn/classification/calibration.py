"""Whether a classifier is right as often as it says it is."""

import torch
from torch import Tensor

__all__ = ["expected_calibration_error"]


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The mean distance of confidence and accuracy, over images in bins of equal confidence.

        sum over bins of  (images in the bin / N) · |accuracy in the bin - mean confidence in the bin|

    Confidence is the probability of the predicted class; bin b holds those in (b / bins, (b + 1) / bins]. Guo et al.,
    "On Calibration of Modern Neural Networks", arXiv 1706.04599.

    Args:
        probabilities: (N, classes), rows that sum to 1.
        labels: (N,) int64.
        bins: number of bins.

    Returns:
        0 (right as often as it says) to 1.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    bin_of = torch.bucketize(confidence, edges)  # right edges belong to their bin
    # count · |accuracy - mean confidence| is the distance of the sums.
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, bin_of, (predicted == labels).double() - confidence)
    return (gap.abs().sum() / len(labels)).item()
