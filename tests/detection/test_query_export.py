"""The form of detectors by queries that is written to files: as many rows whatever the images hold."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torchvision.ops import roi_align

from convattn.deploy.graph_form import graph_form
from convattn.detection.export_form import NOTHING, ExportForm, Numbers
from convattn.detection.region_features import levels_of, region_features, regions_of_all_levels, with_images
from tiny_detectors import QUERIES, QUERY_IDS, detector, images


def test_all_levels_give_what_the_own_level_gives():
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 3, 256 // stride, 320 // stride, generator=generator) for stride in (4, 8, 16, 32)]
    corners = torch.rand(2, 12, 2, generator=generator) * 250 - 20
    sides = torch.logspace(0, 2.8, 12)[None, :, None] * (0.5 + torch.rand(2, 12, 2, generator=generator))
    boxes = torch.cat([corners, corners + sides], -1)
    assert set(levels_of(boxes.flatten(0, 1)).tolist()) == {0, 1, 2, 3}
    got = regions_of_all_levels(levels, boxes, 7, samples=2)
    torch.testing.assert_close(got, region_features(levels, with_images([*boxes]), 7, samples=2))
    there = torch.arange(24).view(2, 12) % 3 > 0
    got = regions_of_all_levels(levels, boxes, 7, there=there)
    assert not got[~there.flatten()].any()
    torch.testing.assert_close(got[there.flatten()], region_features(levels, with_images([*boxes]), 7)[there.flatten()])


def test_boxes_whose_corners_have_crossed_are_read_from_the_first_level():
    """Learnt boxes may get there; torch has no number for the logarithm of their size."""
    crossed = torch.tensor([[50.0, 10.0, 20.0, 200.0], [0.0, 0.0, torch.inf, 0.0]])
    assert levels_of(crossed).tolist() == [0, 0]
    level = torch.randn(1, 3, 64, 64)
    roi = torch.cat([torch.zeros(1, 1), crossed[:1]], 1)
    wanted = roi_align(level, roi, 7, 1 / 4, 2, aligned=True)
    torch.testing.assert_close(region_features([level] * 4, roi, 7, samples=2), wanted)


@pytest.mark.parametrize(("name", "options"), QUERIES, ids=QUERY_IDS)
def test_tables_have_as_many_rows_as_may_be_found(name, options):
    """Here there are 60 pairs of a query and a class, so the rest of 70 rows holds nothing."""
    model = detector(name, max_detections=70, **options).eval()
    with torch.no_grad():
        tables = ExportForm(model)(torch.stack(images((61, 90), (61, 90))))
    assert tables["boxes"].shape == (2, 70, 4) and (tables["labels"][:, 60:] == NOTHING).all()
    assert not tables["scores"][:, 60:].any() and not tables["boxes"][:, 60:].any()


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), QUERIES, ids=QUERY_IDS)
def test_numbers_do_not_depend_on_what_is_chosen(name, options):
    """A constant that all classes of all pixels get changes their order nowhere, one for some pixels does."""
    model = detector(name, **options).eval()
    batch, head = torch.stack(images((64, 96))), model.head
    before = Numbers(model)(batch)
    layers = len(head.stages) if name == "sparse_rcnn" else 2
    assert {f"logits_{number}" for number in range(layers)} < set(before)
    if name == "dino":
        nn.init.normal_(head.classifiers[-1].weight, std=10.0)
    else:
        nn.init.normal_(head.stages[0].mover.bias)
    after = Numbers(model)(batch)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == ({"pixel_logits"} if name == "dino" else {"steps_0"})


@pytest.mark.parametrize(("flavour", "levels"), [("detrex", 2), pytest.param("mmdet", 4, marks=pytest.mark.slow)])
def test_dino_is_exported_with_the_choice_of_its_queries_for_batches_of_any_length(flavour, levels):
    form = graph_form(ExportForm(detector("dino", flavour=flavour, layers=1, levels=levels, queries=4)).eval())
    with torch.no_grad():
        program = export(form, (torch.randn(2, 3, 64, 96),), dynamic_shapes={"images": {0: Dim.AUTO}}, strict=False)
        batch = torch.randn(3, 3, 64, 96)
        got, wanted = program.module()(batch), form(batch)
    for name, one in wanted.items():
        assert got[name].shape == one.shape and torch.allclose(got[name], one, rtol=1e-5, atol=1e-5)
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {step for step in used for word in ("embedding_bag", "nonzero", "native_multi_head") if word in step}
