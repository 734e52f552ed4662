"""The first stage of R-CNN: where there may be an object of any class.

Source: "Faster R-CNN", Ren et al., NeurIPS 2015, arXiv 1506.01497.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.detection.anchors import Anchors, flattened, inside_border
from convattn.detection.assigning import MaxIoU
from convattn.detection.box_coder import BoxCoder, clipped
from convattn.detection.losses import EPS
from convattn.detection.post_processing import suppressed
from convattn.detection.sampling import Sample, Sampler
from convattn.detection.truth import Truth

__all__ = ["OVERLAP", "Proposals", "RegionProposals"]

_ASSIGN = MaxIoU(0.7, 0.3, "all", 0.3)
_SAMPLER = Sampler(256, 0.5)
_CODER = BoxCoder()
OVERLAP = 0.7  # IoU above which the less sure of two proposals of a level goes


@dataclass(frozen=True)
class Proposals:
    """Where there may be objects in an image, the surest first."""

    boxes_xyxy: Tensor  # (n, 4) pixels
    logits: Tensor  # (n,)


@dataclass(frozen=True)
class _Kept:
    """How many proposals are left of an image."""

    of_level: int  # before suppression
    of_image: int  # after it


class RegionProposals(nn.Module):
    """A small head over all levels of a neck: objectness of anchors, and steps to better boxes.

    Args:
        width: channels of the neck.
        anchors: of all levels.
        training, testing: how many proposals are left of a level, and of an image.
        beta: below which differences count squared in the loss of boxes; 0 for none.
        smallest: pixels that both sides of a proposal must have more of.
        border: pixels that anchors may lie outside of the image in training; any by default.
        assign: which anchors stand for which object.
        sampler: of the anchors that are learnt from.
        coder: of boxes.
        fixed_count: losses are divided by as many anchors as are to be sampled, not by those that are (detectron2).
        eps: added to what they are divided by.
    """

    def __init__(
        self,
        width: int,
        anchors: Anchors,
        *,
        training: tuple[int, int] = (2000, 1000),
        testing: tuple[int, int] = (1000, 1000),
        beta: float = 0.0,
        smallest: float = 0.0,
        border: float | None = None,
        assign: MaxIoU = _ASSIGN,
        sampler: Sampler = _SAMPLER,
        coder: BoxCoder = _CODER,
        fixed_count: bool = False,
        eps: float = EPS,
    ):
        super().__init__()
        self.anchors, self.assign, self.sampler, self.coder = anchors, assign, sampler, coder
        self.kept = {True: _Kept(*training), False: _Kept(*testing)}
        self.beta, self.smallest, self.border = beta, smallest, border
        self.fixed_count, self.eps = fixed_count, eps
        self.rpn_conv = nn.Conv2d(width, width, 3, padding=1)
        self.rpn_cls = nn.Conv2d(width, anchors.count, 1)
        self.rpn_reg = nn.Conv2d(width, anchors.count * 4, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each level the logits (B, anchors, h, w) and the steps (B, 4 · anchors, h, w)."""
        hidden = [F.relu(self.rpn_conv(level)) for level in levels]
        return [self.rpn_cls(one) for one in hidden], [self.rpn_reg(one) for one in hidden]

    def proposals(
        self, logits: Sequence[Tensor], steps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Proposals]:
        """The best boxes of each image, of height and width in `sizes`; nothing is learnt through them."""
        kept = self.kept[self.training]
        exact = torch.promote_types(logits[0].dtype, torch.float32)
        scores = [one.detach().to(exact)[..., 0] for one in flattened(logits, 1)]
        moves = [one.detach().to(exact) for one in flattened(steps, 4)]
        anchors = self.anchors.all_boxes([one.shape[2:] for one in logits], scores[0])  # type: ignore[misc]
        best, boxes, level = [], [], []
        for number, (score, move, anchor) in enumerate(zip(scores, moves, anchors, strict=True)):
            score, index = score.topk(min(kept.of_level, score.shape[1]), dim=1)
            move = move.gather(1, index[..., None].expand(-1, -1, 4))
            best.append(score)
            boxes.append(self.coder.decode(anchor[index], move))
            level.append(torch.full_like(index, number))
        score, box, at = torch.cat(best, 1), torch.cat(boxes, 1), torch.cat(level, 1)
        found = []
        for image, size in enumerate(sizes):
            there = clipped(box[image], size)
            real = (there[:, 2:] - there[:, :2] > self.smallest).all(1)
            one = suppressed(there[real], score[image][real], at[image][real], overlap=OVERLAP, most=kept.of_image)
            found.append(Proposals(one.boxes_xyxy, one.scores))
        return found

    def losses(
        self, logits: Sequence[Tensor], steps: Sequence[Tensor], truths: Sequence[Truth]
    ) -> tuple[dict[str, Tensor], list[Sample]]:
        """The losses `label` and `box`, one of each level (levels,), and the anchors of each image that were sampled.

        Args:
            logits, steps: as `forward` gives them.
            truths: of each image.
        """
        exact = torch.promote_types(logits[0].dtype, torch.float32)
        maps = [(one.shape[2], one.shape[3]) for one in logits]
        scores = torch.cat(flattened(logits, 1), 1)[..., 0].to(exact)
        moves = torch.cat(flattened(steps, 4), 1).to(exact)
        parts = self.anchors.all_boxes(maps, scores)
        anchors = torch.cat(parts)
        samples = [self._sample(anchors, maps, truth) for truth in truths]
        wanted, counted, box = torch.zeros_like(scores), torch.zeros_like(scores), torch.zeros_like(scores)
        total = 0
        for image, (truth, (sample, assigned)) in enumerate(zip(truths, samples, strict=True)):
            wanted[image, sample.positive] = 1.0
            counted[image, torch.cat([sample.positive, sample.negative])] = 1.0
            total += max(len(sample.positive), 1) + max(len(sample.negative), 1)
            targets = truth.boxes_xyxy.to(exact)[assigned[sample.positive] - 1]
            goal = self.coder.encode(anchors[sample.positive], targets)
            own = F.smooth_l1_loss(moves[image, sample.positive], goal, reduction="none", beta=self.beta).sum(1)
            box = box.index_put((torch.full_like(sample.positive, image), sample.positive), own)
        if self.fixed_count:
            total = self.sampler.count * len(truths)
        label = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none") * counted
        of_level = [len(part) for part in parts]
        return {
            name: torch.stack([part.sum() for part in loss.split(of_level, 1)]) / (total + self.eps)
            for name, loss in (("label", label), ("box", box))
        }, [sample for sample, _ in samples]

    @torch.no_grad()
    def _sample(self, anchors: Tensor, maps: Sequence[tuple[int, int]], truth: Truth) -> tuple[Sample, Tensor]:
        """Numbers among all anchors, and which object each stands for."""
        parts = None if truth.padded is None else self.anchors.counted(maps, truth.padded, anchors.device)
        there = None if parts is None else torch.cat(parts)
        if self.border is not None:
            inside = inside_border(anchors, truth.size, self.border)
            there = inside if there is None else there & inside
        objects = truth.boxes_xyxy.to(anchors)
        if there is None:
            assigned = self.assign(anchors, objects, truth.ignored_xyxy)
        else:
            (index,) = there.nonzero(as_tuple=True)
            assigned = torch.full((len(anchors),), -1, device=anchors.device)
            assigned[index] = self.assign(anchors[index], objects, truth.ignored_xyxy)
        return self.sampler(assigned), assigned
