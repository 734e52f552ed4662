"""What the training loop needs to know of classification."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from convattn.classification.evaluate import evaluate
from convattn.data.loader import Batch

__all__ = ["Classification"]


class Classification:
    """Softmax cross entropy with label smoothing, on images that may be mixed with one another.

    Args:
        num_classes: width of the logits.
        label_smoothing: share of the target spread over all classes.
        mixup: alpha of the Beta distribution that blends two images; 0 for none.
        cutmix: alpha of the one that pastes a rectangle of another image; 0 for none.
        mix_probability: share of the batches that are mixed at all.
        cutmix_probability: share of the mixed batches that are cut rather than blended, where both are on.
        mix_epochs: mixing stops after so many epochs; None for never.
    """

    best_metric = "top1"  # of `metrics`; higher is better

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        cutmix_probability: float = 0.5,
        mix_epochs: int | None = None,
    ):
        self.label_smoothing = label_smoothing
        self.mix_epochs = mix_epochs
        self.mixing: Mixup | None = None
        if mixup or cutmix:
            self.mixing = Mixup(
                mixup_alpha=mixup,
                cutmix_alpha=cutmix,
                prob=mix_probability,
                switch_prob=cutmix_probability,
                label_smoothing=0.0,  # the loss smooths mixed and plain targets alike
                num_classes=num_classes,
            )

    def start_epoch(self, epoch: int) -> None:
        """Called by the loop before epoch `epoch`, from 0."""
        if self.mixing is not None:
            self.mixing.mixup_enabled = self.mix_epochs is None or epoch < self.mix_epochs

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a training batch, a scalar. Draws from numpy's random state where images are mixed."""
        images, targets = batch.images, batch.labels
        if self.mixing is not None and self.mixing.mixup_enabled:
            images, targets = self.mixing(images.clone(), targets)
        return F.cross_entropy(model(images), targets, label_smoothing=self.label_smoothing)

    def metrics(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        device: torch.device,
        *,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        on_batch: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """`val_loss`, `top1` and `top5` (percent) on a validation set."""
        result = evaluate(model, loader, device, autocast=autocast, on_batch=on_batch)
        return {"val_loss": result.loss, "top1": result.top1, "top5": result.top5}
