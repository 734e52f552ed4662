"""Sparse R-CNN on given maps of a neck, and what no file of the reference holds."""

import pytest
import torch

from convattn.detection.sparse_rcnn import SparseHead
from convattn.detection.truth import Truth
from convattn.weights.query_detectors import SPARSE_RCNN_NAMES
from query_golden import load_golden

PARTS = {"label": "loss_cls", "l1": "loss_bbox", "iou": "loss_iou"}


@pytest.fixture(scope="module", params=["sparse", "sparse_empty"])
def case(request):
    golden = load_golden(request.param)
    config = golden.config
    head = SparseHead(
        config["channels"],
        config["classes"],
        proposals=config["proposals"],
        stages=config["stages"],
        heads=config["heads"],
        hidden=config["ffn"],
        inner=config["dynamic"],
    ).double()
    head.load_state_dict({SPARSE_RCNN_NAMES.to_ours(name): tensor for name, tensor in golden.state().items()})
    assert {SPARSE_RCNN_NAMES.to_theirs(name) for name in head.state_dict()} == {*golden.shapes}
    return golden, golden.inputs(), head


def test_stages_losses_and_gradients_are_the_references(case):
    golden, x, head = case
    maps = [x[f"map{at}"].clone().requires_grad_() for at in range(4)]
    sizes = [tuple(size) for size in x["image_shapes"]]
    truths = [Truth(x[f"boxes{at}"].reshape(-1, 4), x[f"labels{at}"], size) for at, size in enumerate(sizes)]
    losses = head.losses(maps, truths)
    total = sum(losses.values())
    weights = dict(head.named_parameters())
    gradients = torch.autograd.grad(total, [*maps, *weights.values()])
    norms = dict(zip(map(SPARSE_RCNN_NAMES.to_theirs, weights), (each.norm() for each in gradients[4:]), strict=True))
    got = {f"grad_map{at}": gradients[at] for at in range(4)}
    got |= {"loss.total": total, "grad_norm": torch.stack([norms[name] for name in golden.shapes])}
    for name, loss in losses.items():
        stage, part = name.removeprefix("stage").split(".")
        got[f"loss.s{stage}.{PARTS[part]}"] = loss
    for at, stage in enumerate(head(maps, sizes)):
        got |= {
            f"stage{at}.cls": stage.logits,
            f"stage{at}.boxes": stage.boxes_xyxy,
            f"stage{at}.object": stage.proposals,
        }
    head.most = golden.config["keep"]
    found = head.surest(maps, sizes)
    parts = {"boxes": found.boxes_xyxy, "scores": found.scores, "labels": found.labels}
    got |= {f"det{at}.{name}": part[at] for name, part in parts.items() for at in range(len(sizes))}
    assert {*got} == {name for name in golden.names if not name.endswith("assigned")}
    errors = {name: golden.error(name, value.reshape(shape_of(golden, name))) for name, value in got.items()}
    assert max(errors.values()) < 1e-9, errors


def shape_of(golden, name):
    whole = golden.arrays.get(f"out.{name}")
    return whole.shape if whole is not None else tuple(golden.arrays[f"out.{name}#shape"])


def small_head():
    torch.manual_seed(0)
    return SparseHead(16, 3, proposals=5, stages=2, heads=2, hidden=8, inner=4)


def maps_of(batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 16, 64 // stride, 96 // stride, generator=generator) for stride in (4, 8, 16, 32)]


@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (4, 9)])
def test_every_weight_learns_whatever_the_images_hold(counts):
    """Also where no image has a box, or one has more than there are proposals."""
    head = small_head()
    truths = [
        Truth(
            torch.tensor([[4.0, 5.0, 40.0, 60.0]] * count).reshape(-1, 4),
            torch.zeros(count, dtype=torch.long),
            (64, 96),
        )
        for count in counts
    ]
    losses = head.losses(maps_of(), truths)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["stage0.label"] < 5
    sum(losses.values()).backward()
    assert not [name for name, weight in head.named_parameters() if weight.grad is None]


def test_proposals_begin_as_the_whole_image():
    head = small_head().eval()
    boxes = head.proposal_boxes.weight
    assert torch.equal(boxes, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(5, 4))
    found = head.surest(maps_of(1), [(64, 96)])
    assert (found.boxes_xyxy.shape, found.scores.shape, found.labels.shape) == ((1, 5, 4), (1, 5), (1, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_no_infinities(dtype):
    head = small_head()
    truths = [Truth(torch.tensor([[4.0, 5.0, 40.0, 60.0]]), torch.zeros(1, dtype=torch.long), (64, 96))] * 2
    with torch.autocast("cpu", dtype):
        losses = head.losses([each.to(dtype) for each in maps_of()], truths)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
