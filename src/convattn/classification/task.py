"""What the training loop needs to know of classification."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from convattn.classification.distillation import distillation_loss
from convattn.classification.options import ClassificationOptions
from convattn.classification.scores import Scores
from convattn.classification.teacher import Student
from convattn.task import Batch

__all__ = ["Classification", "balanced_weights"]


class Classification:
    """Softmax cross entropy on images that may be mixed with one another, with the labels, with a teacher, or both.

    Of an image without a label (-1) only the teacher's part counts; of a mixture, the label's part counts as much as
    labelled images are in it.

    Args:
        num_classes: width of the logits.
        options: smoothing, mixing, and how a teacher teaches.
        class_weights: (classes,) factors of each class's part of the target; the sum is divided by the number of
            images, not by that of their weights.
        teacher: a model of the same classes, on the device of the run; it sees what the student sees, mixed or not. It
            is put into evaluation mode and loses its gradients.
        student: what such a teacher had to know of the model, kept for `state`.

    Raises:
        ValueError: if the teacher tells another number of classes apart, or the labels count for nothing and an option
            of theirs is given.
    """

    def __init__(
        self,
        num_classes: int,
        options: ClassificationOptions,
        *,
        class_weights: Tensor | None = None,
        teacher: nn.Module | None = None,
        student: Student | None = None,
    ):
        self.num_classes, self.options, self.class_weights = num_classes, options, class_weights
        self.teacher, self.student = teacher, student
        self._columns = num_classes + (teacher is not None)  # the last then stands for "no label" and is dropped
        if teacher is not None:
            self._check_teacher(teacher)
            teacher.eval().requires_grad_(False)
        self.mixing: Mixup | None = None
        if options.mixes:
            self.mixing = Mixup(
                mixup_alpha=options.mixup,
                cutmix_alpha=options.cutmix,
                prob=options.mix_probability,
                switch_prob=options.cutmix_probability,
                label_smoothing=0.0,  # the loss smooths mixed and plain targets alike
                num_classes=self._columns,
            )

    def start_epoch(self, epoch: int) -> None:
        """Called by the loop before epoch `epoch`, from 0."""
        if self.mixing is not None:
            self.mixing.mixup_enabled = self.options.mix_epochs is None or epoch < self.options.mix_epochs

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean loss of a training batch, a scalar. Draws from numpy's random state where images are mixed.

        Under autocast the networks run in lower precision; what follows their logits does not.

        Args:
            model: images (B, 3, H, W) -> logits (B, classes).
            batch: images and labels; -1 for none, with a teacher only.
        """
        images, targets = self._images_and_targets(batch)
        logits = model(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.teacher is None:
            return {"labels": self._label_losses(logits, targets).mean()}
        with torch.no_grad():
            taught = self.teacher(images)
        distillation = self.options.distillation
        label_share = (1 - distillation.weight) * targets.sum(dim=1)
        losses = {"teacher": ((1 - label_share) * distillation_loss(logits, taught, distillation)).mean()}
        if distillation.weight < 1:
            losses["labels"] = ((1 - distillation.weight) * self._label_losses(logits, targets)).mean()
        return losses

    def blank(self, device: torch.device) -> Batch:
        """Black images of the first class; of its losses nothing may be learnt."""
        assert self.student is not None  # known in every run
        images = torch.zeros(2, 3, *self.student.image_size, device=device)
        return Batch(images, torch.zeros(2, dtype=torch.int64, device=device), ["", ""])

    def head(self, model: nn.Module) -> nn.Module:
        """The classifier."""
        return model.get_classifier()  # type: ignore[operator]

    def meter(self) -> Scores:
        """Of `METRICS`."""
        return Scores()

    def state(self) -> dict[str, Any]:
        """The weights of the classes, and what a teacher needs to know."""
        weights = None if self.class_weights is None else self.class_weights.cpu()
        return {"class_weights": weights, "student": None if self.student is None else asdict(self.student)}

    def _images_and_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images as the model sees them, and their classes' shares (B, classes): all 0 where there is no label."""
        labels, images = batch.targets, batch.images
        assert isinstance(images, Tensor)  # all of one size: the transforms see to it
        if self.teacher is not None:
            labels = torch.where(labels < 0, self.num_classes, labels)
        if self.mixing is not None and self.mixing.mixup_enabled:
            images, shares = self.mixing(images.clone(), labels)
        else:
            shares = torch.zeros(len(labels), self._columns, device=labels.device).scatter_(1, labels[:, None], 1.0)
        return images, shares[:, : self.num_classes]

    def _label_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each image, (B,); smoothed as far as there is a label."""
        uniform = targets.sum(dim=1, keepdim=True) / self.num_classes
        smoothed = targets + self.options.label_smoothing * (uniform - targets)
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        return F.cross_entropy(logits, smoothed.to(logits.dtype), weight, reduction="none")

    def _check_teacher(self, teacher: nn.Module) -> None:
        if teacher.num_classes != self.num_classes:
            raise ValueError(
                f"the teacher has {teacher.num_classes} classes and the data {self.num_classes}; "
                "take a teacher trained on the same classes"
            )
        smoothed = self.options.label_smoothing > 0
        if self.options.distillation.weight == 1 and (smoothed or self.class_weights is not None):
            raise ValueError(
                "label smoothing and class weights have no effect with distillation.weight 1; lower it, or drop them"
            )


def balanced_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """Weights under which every class counts the same: images / (classes · images of the class), (classes,) float32.

    Their mean over the images is 1 if every class has some. A class without images weighs 0; labels of -1 are passed
    over.
    """
    known = torch.tensor([label for label in labels if label >= 0], dtype=torch.int64)
    counts = torch.bincount(known, minlength=num_classes)
    return torch.where(counts > 0, len(known) / (num_classes * counts.clamp(min=1)), 0.0)
