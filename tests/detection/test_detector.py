"""Detectors as people call them: images of any sizes, torchvision's targets, whatever these hold, in any precision."""

import copy

import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from convattn.detection.image_batch import batched
from tiny_detectors import CROWD, FORMS, IDS, SIZE, WITH, WITHOUT, detector, images, target


@pytest.mark.parametrize(("name", "options"), FORMS, ids=IDS)
@pytest.mark.parametrize("held", [(WITH, WITH), (WITH, WITHOUT), (WITHOUT, WITHOUT), (CROWD, CROWD), (WITH,)])
def test_every_weight_learns_whatever_the_images_hold(name, options, held):
    model = detector(name, **options).train()
    losses = model(images(*[SIZE] * len(held)), list(held))
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize(("name", "options"), FORMS, ids=IDS)
def test_what_is_found_is_in_torchvisions_format(name, options):
    model = detector(name, **options).eval()
    model.score_threshold = 0.0
    sizes = [(61, 90), (33, 40)]
    for found, (height, width) in zip(model(images(*sizes)), sizes, strict=True):
        boxes, count = found["boxes"], len(found["scores"])
        assert 0 < count <= 100 and boxes.shape == (count, 4) and found["labels"].dtype == torch.int64
        assert (boxes >= 0).all() and (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
        assert (found["scores"].diff() <= 0).all() and found["labels"].max() < 3
        assert ("masks" in found) == ("mask" in name)
        if "masks" in found:
            assert found["masks"].shape == (count, height, width) and found["masks"].dtype == torch.bool
    model.max_detections = 3
    assert [len(found["scores"]) for found in model(images(*sizes))] == [3, 3]


@pytest.mark.parametrize("name", ["mask_rcnn", "atss"])
def test_boxes_end_at_their_own_image_not_at_the_batch(name):
    model = detector(name).eval()
    model.score_threshold = 0.0
    small, large = model(images((64, 90), (128, 96)))
    assert small["boxes"][:, 2].max() <= 90 and small["boxes"][:, 3].max() <= 64
    assert large["boxes"][:, 3].max() > 64


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_rcnn", "retinanet", "atss"])
def test_padding_in_which_no_anchor_counts_changes_no_target(name):
    """An anchor beyond an image's own padding is neither object nor background."""
    model = detector(name).train()
    small, large = images((64, 96), (128, 224))
    truths = [target((64, 96), (5, 6, 50, 40)), target((128, 224), (30, 10, 80, 60))]
    seen = []
    head = model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head
    kind = type(head.assign)
    original = kind.__call__

    def watched(self, boxes, *rest):
        seen.append(len(boxes))
        return original(self, boxes, *rest)

    kind.__call__ = watched
    try:
        model([small, large], truths)
    finally:
        kind.__call__ = original
    own, whole = seen[:2]
    assert own < whole


def test_batches_are_padded_at_right_and_bottom_to_multiples_of_32():
    weight = torch.zeros(1)
    batch = batched(images((61, 90), (33, 40)), weight)
    assert batch.pixels.shape == (2, 3, 64, 96)
    assert (batch.sizes, batch.padded) == ([(61, 90), (33, 40)], [(64, 96), (64, 64)])
    assert torch.equal(batch.pixels[1, :, :33, :40], images((61, 90), (33, 40))[1])
    assert not batch.pixels[1, :, 33:].any() and not batch.pixels[0, :, :, 90:].any()
    ready = torch.randn(2, 3, 64, 96)
    assert batched(ready, weight).pixels is ready
    assert batched(ready[..., :90], weight).pixels.shape == (2, 3, 64, 96)


def test_gradients_reach_images_of_any_sizes():
    own = [image.requires_grad_() for image in images((61, 90), (33, 40))]
    batched(own, torch.zeros(1)).pixels.square().sum().backward()
    assert all(torch.equal(image.grad, 2 * image) for image in own)


@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_images_of_odd_shapes_are_images(name, size):
    model = detector(name)
    losses = model.train()(images(size, size), [target(size, (0, 0, size[1], size[0]))] * 2)
    assert all(loss.isfinite() for loss in losses.values())
    (found,) = model.eval()(images(size))
    assert (found["boxes"][:, 2:] <= torch.tensor([size[1], size[0]])).all()


@pytest.mark.parametrize(("name", "options"), FORMS, ids=IDS)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
def test_half_precision_gives_losses_and_boxes_in_single(name, options, dtype):
    model = detector(name, **options)
    with torch.autocast("cpu", dtype):
        losses = model.train()(images(SIZE, SIZE), [WITH, WITHOUT])
        found = model.eval()(images(SIZE))
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert {found[0][name].dtype for name in ("boxes", "scores")} == {torch.float32}
    model.to(dtype).train()
    losses = model([image.to(dtype) for image in images(SIZE, SIZE)], [WITH, WITHOUT])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())


def test_a_network_that_has_overflowed_says_so_by_its_losses():
    for name in ("mask_rcnn", "cascade_rcnn", "atss"):
        model = detector(name).train()
        nn.init.constant_(model.backbone.stem[0].weight, float("nan"))
        losses = model(images(SIZE), [WITH])
        assert not sum(losses.values()).isfinite()


def test_losses_repeat_with_torchs_seed_and_are_there_in_evaluation_too():
    model = detector("mask_rcnn").eval()
    torch.manual_seed(5)
    first = model.losses(images(SIZE, SIZE), [WITH, WITH])
    torch.manual_seed(5)
    again = model.losses(images(SIZE, SIZE), [WITH, WITH])
    assert first.keys() == again.keys() == {"proposal.label", "proposal.box", "label", "box", "mask"}
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("retinanet", {"label", "box"}),
        ("atss", {"label", "box", "center"}),
        (
            "cascade_mask_rcnn",
            {"proposal.label", "proposal.box"}
            | {f"stage{at}.{part}" for at in range(3) for part in ("label", "box", "mask")},
        ),
    ],
)
def test_losses_have_names(name, names):
    assert detector(name).losses(images(SIZE), [WITH]).keys() == names


@pytest.mark.parametrize("style", ["mmdet", "detectron2"])
def test_polygons_stand_for_masks(style):
    outline = [5.0, 6, 50, 6, 50, 40, 5, 40]
    drawn, other = target(SIZE, (5, 6, 50, 40)), target(SIZE, (5, 6, 50, 40))
    other.pop("masks")
    model, losses = detector("mask_rcnn", style=style).train(), []
    for one in (drawn, {**other, "polygons": [[outline]]}):
        torch.manual_seed(2)
        losses.append(copy.deepcopy(model).losses(images(SIZE), [one])["mask"])
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.02)


def test_boxes_of_torchvision_and_of_whole_numbers_are_taken():
    model = detector("retinanet").train()
    wanted = model.losses(images(SIZE), [WITH])
    for boxes in (tv_tensors.BoundingBoxes(WITH["boxes"], format="XYXY", canvas_size=SIZE), WITH["boxes"].long()):
        got = model.losses(images(SIZE), [{**WITH, "boxes": boxes, "image_id": 7, "labels": WITH["labels"].int()}])
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_crowds_need_no_outline():
    model = detector("mask_rcnn").eval()
    outline = [[5.0, 6, 50, 6, 50, 40]]
    one = {"boxes": WITH["boxes"], "labels": WITH["labels"], "iscrowd": torch.tensor([False, True])}
    assert model.losses(images(SIZE), [one | {"polygons": [outline, None]}]).keys() > {"mask"}


def test_crowds_are_no_objects():
    model = detector("mask_rcnn").eval()
    mixed = {name: torch.cat([WITH[name], CROWD[name]]) for name in ("boxes", "labels", "masks")}
    losses = []
    for one in (WITH, {**mixed, "iscrowd": torch.tensor([0, 0, 1])}):
        torch.manual_seed(2)
        losses.append(model.losses(images(SIZE), [one]))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
