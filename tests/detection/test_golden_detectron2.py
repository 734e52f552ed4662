"""Whole detectors in detectron2's style against its numbers, from its weights under its names."""

import pytest
import torch

from convattn.backbones.levels import find_levels
from convattn.detection.create import compose
from convattn.detection.masks import Polygons
from convattn.detection.rcnn import Widths
from convattn.detection.truth import Truth
from detection_golden import GivenLevels, assert_agrees, choose, load_golden, polygon, true_objects

NAMES = ["mask_rcnn", pytest.param("cascade_mask_rcnn", marks=pytest.mark.slow)]
THEIRS = {"label": "loss_cls", "box": "loss_box_reg", "mask": "loss_mask"}


def detector_of(golden):
    meta = golden.meta
    backbone = GivenLevels([8, 8, 8, 8], (4, 8, 16, 32))  # the file begins behind the neck
    model = compose(
        backbone,
        find_levels(backbone),
        meta["type"],
        meta["classes"],
        style="detectron2",
        widths=Widths(meta["channels"][0], meta["conv"], meta["fc"]),
        choose=choose,
    ).double()
    state = {model.official_names.to_ours(name): tensor for name, tensor in golden.state().items()}
    fits = model.load_state_dict(state, strict=False)
    assert not fits.unexpected_keys
    assert all(name.startswith("neck.") for name in fits.missing_keys)
    return model


def levels_of(golden):
    return [level.requires_grad_() for level in golden.pyramid(golden.meta["channels"], golden.meta["sizes"])]


def truths_of(golden):
    found = []
    for at, size in enumerate(golden.meta["images"]):
        boxes, labels = true_objects(golden, at, golden.meta["ngt"][at], *size)
        assert torch.allclose(boxes, golden[f"gt{at}_boxes"])
        assert labels.tolist() == golden[f"gt{at}_labels"].tolist()
        found.append(Truth(boxes, labels, tuple(size), Polygons([[polygon(box)] for box in boxes.tolist()])))
    return found


def with_logits(proposals):
    return torch.cat([proposals.boxes_xyxy, proposals.logits[:, None]], 1)


@pytest.mark.parametrize("name", NAMES)
def test_detectors_learn_as_the_reference(name):
    golden = load_golden(f"e2e_d2_{name}")
    model, levels, truths = detector_of(golden).train(), levels_of(golden), truths_of(golden)
    logits, steps = model.rpn_head(levels)
    first, _ = model.rpn_head.losses(logits, steps, truths)
    proposals = model.rpn_head.proposals(logits, steps, [truth.size for truth in truths])
    losses, said = model.roi_head.losses(levels, [one.boxes_xyxy for one in proposals], truths)
    total = sum(loss.sum() for loss in (*first.values(), *losses.values()))
    total.backward()
    got = {"loss/loss_rpn_cls": first["label"].sum(), "loss/loss_rpn_loc": first["box"].sum(), "loss/total": total}
    for ours, loss in losses.items():
        stage, _, part = ours.rpartition(".")
        got[f"loss/{THEIRS[part]}{f'_{stage}' if stage else ''}"] = loss
    got |= {f"grad{at}": level.grad for at, level in enumerate(levels)}
    got |= {f"prop{at}": with_logits(one) for at, one in enumerate(proposals)}
    for at, (boxes, labels) in enumerate(zip(said[0].regions.boxes_xyxy, said[0].regions.labels, strict=True)):
        got |= {f"sampled{at}_boxes": boxes, f"sampled{at}_classes": labels}
    assert_agrees(golden, got)
    left = golden.names - {*got}
    assert all(entry.startswith(("gt", "det", "test_prop")) for entry in left)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_detectors_find_what_the_reference_finds(name):
    golden = load_golden(f"e2e_d2_{name}")
    model, levels = detector_of(golden).eval(), levels_of(golden)
    sizes = [tuple(size) for size in golden.meta["images"]]
    proposals = model.rpn_head.proposals(*model.rpn_head(levels), sizes)
    got = {f"test_prop{at}": with_logits(one) for at, one in enumerate(proposals)}
    found = model.found_in(levels, sizes)
    for at, one in enumerate(found):
        got |= {f"det{at}_{entry}": one[entry] for entry in ("boxes", "scores", "labels")}
    shares = model.roi_head.mask_shares(levels, [one["boxes"] for one in found], [one["labels"] for one in found])
    counts = [len(one["labels"]) for one in found]
    got |= {f"det{at}_masks28": own[:, None] for at, own in enumerate(shares.split(counts))}
    assert_agrees(golden, got)
    assert {*got} == {entry for entry in golden.names if entry.startswith(("det", "test_prop"))}


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_weights_go_back_under_the_names_of_the_reference(name):
    golden = load_golden(f"e2e_d2_{name}")
    model = detector_of(golden)
    theirs = {model.official_names.to_theirs(ours): tensor.shape for ours, tensor in model.state_dict().items()}
    heads = {entry: tuple(shape) for entry, shape in theirs.items() if not entry.startswith("backbone.")}
    assert heads == golden.shapes
    neck = {entry for entry in theirs if entry.startswith("backbone.")}
    assert {"backbone.fpn_lateral2.weight", "backbone.fpn_output5.norm.running_var"} <= neck
    assert all(model.official_names.to_ours(entry) in model.state_dict() for entry in theirs)
