"""Losses of a model that learns from the outputs of a teacher."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.classification.options import DistillationConfig

__all__ = ["distillation_loss", "js_divergence"]


def distillation_loss(student: Tensor, teacher: Tensor, options: DistillationConfig) -> Tensor:
    """What each image costs the student beside its teacher, nats.

    With temperature T, `soft` is T² · -Σ softmax(teacher / T) · log softmax(student / T): the factor keeps the gradient
    as large as that of the labels whatever T (Hinton et al., arXiv 1503.02531).

    Args:
        student: logits (B, classes).
        teacher: logits (B, classes) in any float type, without gradient.
        options: which loss, and how soft.

    Returns:
        (B,) losses.
    """
    teacher = teacher.to(student.dtype)
    if options.loss == "js":
        return js_divergence(student, teacher)
    if options.loss == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")
    heat = options.temperature
    return F.cross_entropy(student / heat, (teacher / heat).softmax(dim=1), reduction="none") * heat**2


def js_divergence(left: Tensor, right: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two distributions, (B,) nats from 0 to log 2; symmetric.

    ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2, from logits (B, classes); as in SSLD (Cui et al., arXiv 2103.05959).
    """
    log_p, log_q = left.log_softmax(dim=1), right.log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    divergences = [F.kl_div(log_m, log, reduction="none", log_target=True).sum(dim=1) for log in (log_p, log_q)]
    return (divergences[0] + divergences[1]) / 2
