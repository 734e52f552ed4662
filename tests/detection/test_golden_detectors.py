"""Whole detectors against mmdetection's numbers: losses, samples, proposals, outputs, gradients, what is found."""

import pytest
import torch
from torch import Tensor

from convattn.backbones.levels import find_levels
from convattn.detection.create import compose
from convattn.detection.masks import Bitmaps
from convattn.detection.rcnn import Widths
from convattn.detection.truth import Truth
from detection_golden import GivenLevels, assert_agrees, bitmaps, choose, load_golden, true_objects

TWO_STAGES = {
    "faster_rcnn": None,
    "mask_rcnn": None,
    "cascade_rcnn": None,
    "cascade_mask_rcnn": "4conv1fc",  # as SMT has published it
}
DENSE = {"retinanet": ("label", "box"), "atss": ("label", "box", "center")}
THEIRS = {"label": "loss_cls", "box": "loss_bbox", "mask": "loss_mask", "center": "loss_centerness"}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("faster_rcnn", "cascade_rcnn", "cascade_mask_rcnn")]


class WatchedBitmaps(Bitmaps):
    """Bitmaps that keep what was asked of them."""

    asked: list[Tensor]

    def within(self, index, boxes_xyxy, side):
        found = super().within(index, boxes_xyxy, side)
        self.asked.append(found)
        return found


class WatchedChoice:
    """The golden choice, and all that was chosen."""

    def __init__(self):
        self.made = []

    def __call__(self, candidates, count):
        self.made.append(choose(candidates, count))
        return self.made[-1]


def detector_of(golden, choice=choose):
    meta, name = golden.meta, golden.meta["type"]
    strides = (8, 16, 32) if name in DENSE else (4, 8, 16, 32)
    backbone = GivenLevels(meta["channels"][-len(strides) :], strides)
    hidden = dict(hidden=meta["fc"], convs=meta["fpn"] if name in DENSE else meta["conv"])
    model = compose(
        backbone,
        find_levels(backbone, strides),
        name,
        meta["classes"],
        box_head=TWO_STAGES.get(name),
        widths=Widths(meta["fpn"], **hidden),
        choose=choice,
    )
    return golden.load(model.double())


def maps_of(golden):
    """The backbone's levels that a detector uses, and the number of the first in the file."""
    first = 1 if golden.meta["type"] in DENSE else 0
    return [
        level.requires_grad_() for level in golden.pyramid(golden.meta["channels"], golden.meta["sizes"])[first:]
    ], first


def truths_of(golden, case, asked):
    found = []
    for at, image in enumerate(golden.meta["images"]):
        size, count = tuple(image["img_shape"]), golden.meta["ngt"][case][at]
        boxes, labels = true_objects(golden, at, count, *size)
        assert (
            torch.allclose(boxes, golden[f"{case}/gt{at}_boxes"])
            and labels.tolist() == golden[f"{case}/gt{at}_labels"].tolist()
        )
        masks = WatchedBitmaps(bitmaps(boxes, *golden.meta["pad"]))
        object.__setattr__(masks, "asked", asked)
        found.append(Truth(boxes, labels, size, masks, None, tuple(golden.meta["pad"])))
    return found


def sizes_of(golden, name):
    return [tuple(image[name]) for image in golden.meta["images"]]


def in_training(golden, case):
    """All that a detector of two stages says and does in training, by the file's names."""
    asked, said_of_masks, choice = [], [], WatchedChoice()
    model = detector_of(golden, choice).train()
    for head in model.roi_head.mask_heads:
        head.register_forward_hook(lambda module, inputs, output: said_of_masks.append(output))
    (maps, first), truths = maps_of(golden), truths_of(golden, case, asked)
    levels = model.neck(maps)
    logits, steps = model.rpn_head(levels)
    losses, _ = model.rpn_head.losses(logits, steps, truths)
    proposals = model.rpn_head.proposals(logits, steps, [truth.size for truth in truths])
    regional, said = model.roi_head.losses(levels, [one.boxes_xyxy for one in proposals], truths)
    total = sum(loss.sum() for loss in (*losses.values(), *regional.values()))
    total.backward()
    got = {f"loss/loss_rpn_{theirs}": losses[ours] for ours, theirs in (("label", "cls"), ("box", "bbox"))}
    got |= {f"loss/{in_their_words(name)}": loss for name, loss in regional.items()}
    got |= {"loss/total": total} | {f"grad{first + at}": level.grad for at, level in enumerate(maps)}
    for at, one in enumerate(proposals):
        got[f"prop{at}"] = torch.cat([one.boxes_xyxy, one.logits.sigmoid()[:, None]], 1)
    names = ["rpn", *(f"s{stage}" for stage in range(len(said)))]
    got |= dict(
        zip(
            [f"{name}_{kind}{image}" for name in names for image in range(2) for kind in ("pos", "neg")],
            choice.made,
            strict=True,
        )
    )
    for stage, one in enumerate(said):
        labels = torch.cat(one.regions.labels)
        prefix = f"s{stage}." if len(said) > 1 else ""
        got[f"loss/{prefix}acc"] = 100 * (one.logits.argmax(1) == labels).double().mean()
        got |= {f"s{stage}_rois": one.rois, f"s{stage}_cls": one.logits, f"s{stage}_reg": one.steps.flatten(1)}
        got[f"s{stage}_reg_target"] = wanted_steps(model, stage, one, truths)
        if said_of_masks:
            got |= {f"s{stage}_mask_pred": said_of_masks[stage], f"s{stage}_mask_target": torch.cat(asked[:2])}
            del asked[: sum(bool((own < model.num_classes).any()) for own in one.regions.labels)]
    return model, maps, truths, {f"{case}/{name}": value for name, value in got.items()}


def in_their_words(name):
    stage, _, part = name.rpartition(".")
    return f"{stage.replace('stage', 's')}.{THEIRS[part]}" if stage else THEIRS[part]


def wanted_steps(model, stage, said, truths):
    """What the steps of regions are compared with, 0 for background."""
    rules = model.roi_head.stages[stage]
    found = []
    for boxes, labels, objects, truth in zip(
        said.regions.boxes_xyxy, said.regions.labels, said.regions.objects, truths, strict=True
    ):
        rows, there = torch.zeros_like(boxes), labels < model.num_classes
        own = truth.boxes_xyxy[objects[there]]
        rows[there] = own if rules.compares_boxes else rules.coder.encode(boxes[there], own)
        found.append(rows)
    return torch.cat(found)


@pytest.mark.parametrize("name", ["mask_rcnn", *SLOW])
def test_two_stages_learn_as_the_reference(name):
    golden = load_golden(f"e2e_{name}")
    _, _, _, got = in_training(golden, "full")
    assert_agrees(golden, got)
    told = {entry for entry in golden.names if entry.startswith("full/") and "/gt" not in entry}
    assert told - {*got} == {entry for entry in told if "/det" in entry or "/test_prop" in entry}


@pytest.mark.parametrize("name", ["mask_rcnn", *SLOW])
def test_two_stages_learn_as_the_reference_from_an_image_without_objects(name):
    golden = load_golden(f"e2e_{name}")
    model, maps, truths, got = in_training(golden, "empty")
    told = {entry for entry in golden.names if entry.startswith("empty/") and "/gt" not in entry}
    assert_agrees(golden, {entry: got[entry] for entry in told})
    whole = golden.load(model).losses_of(model.neck(maps), truths)
    assert_agrees(golden, {"empty/loss/total": sum(whole.values())})


@pytest.mark.parametrize("name", ["mask_rcnn", *SLOW])
@torch.no_grad()
def test_two_stages_find_what_the_reference_finds(name):
    golden = load_golden(f"e2e_{name}")
    model = detector_of(golden).eval()
    levels, sizes = model.neck(maps_of(golden)[0]), sizes_of(golden, "img_shape")
    proposals = model.rpn_head.proposals(*model.rpn_head(levels), sizes)
    got = {
        f"full/test_prop{at}": torch.cat([one.boxes_xyxy, one.logits.sigmoid()[:, None]], 1)
        for at, one in enumerate(proposals)
    }
    assert_agrees(golden, got | found(golden, model, levels))


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("case", ["full", "empty"])
def test_one_stage_learns_as_the_reference(name, case):
    golden = load_golden(f"e2e_{name}")
    model, (maps, first) = detector_of(golden).train(), maps_of(golden)
    losses = model.bbox_head.losses(model.neck(maps), truths_of(golden, case, []))
    total = sum(loss.sum() for loss in losses.values())
    total.backward()
    got = {f"loss/{THEIRS[part]}": losses[part] for part in DENSE[name]} | {"loss/total": total}
    got |= {f"grad{first + at}": level.grad for at, level in enumerate(maps)}
    assert_agrees(golden, {f"{case}/{entry}": value for entry, value in got.items()})
    told = {entry for entry in golden.names if entry.startswith(f"{case}/") and "/gt" not in entry}
    assert {entry.removeprefix(f"{case}/") for entry in told if "/det" not in entry} == {*got}


@pytest.mark.parametrize("name", DENSE)
@torch.no_grad()
def test_one_stage_finds_what_the_reference_finds(name):
    golden = load_golden(f"e2e_{name}")
    model = detector_of(golden).eval()
    assert_agrees(golden, found(golden, model, model.neck(maps_of(golden)[0])))


def found(golden, model, levels):
    got = {}
    results = model.found_in(levels, sizes_of(golden, "img_shape"), sizes_of(golden, "ori_shape"))
    for at, one in enumerate(results):
        got |= {f"full/det{at}_{name}": one[name] for name in ("boxes", "scores", "labels")}
        if "masks" in one:
            got |= {f"full/det{at}_masks": one["masks"], f"full/det{at}_mask_area": one["masks"].sum((1, 2))}
    assert {*got} == {entry for entry in golden.names if entry.startswith("full/det")}
    return got
