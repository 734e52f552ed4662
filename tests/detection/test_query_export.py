"""The form of detectors by queries that is written to files: as many rows whatever the images hold."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from convattn.detection.multi_scale_attention import MultiScaleAttention
from tiny_detectors import QUERIES, QUERY_IDS, detector, images


class Rows(nn.Module):
    """Boxes, scores and labels of a batch (B, 3, H, W)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        rows = self.model.surest(batch)
        return rows.boxes_xyxy, rows.scores, rows.labels


@pytest.mark.parametrize(("name", "options"), QUERIES, ids=QUERY_IDS)
def test_rows_are_what_is_found(name, options):
    model = detector(name, **options).eval()
    for size in ((64, 96), (61, 90)):
        batch = torch.stack(images(size, size))
        boxes, scores, labels = Rows(model)(batch)
        assert boxes.shape == (2, model.max_detections if model.max_detections < 60 else 60, 4)
        for at, found in enumerate(model(batch)):
            wanted = found["boxes"], found["scores"], found["labels"]
            kept = model._kept(boxes[at], scores[at])
            got = [part[at] if kept is None else part[at][kept] for part in (boxes, scores, labels)]
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(("flavour", "levels"), [("detrex", 2), pytest.param("mmdet", 4, marks=pytest.mark.slow)])
def test_dino_is_exported_with_the_choice_of_its_queries_for_batches_of_any_length(flavour, levels):
    model = detector("dino", flavour=flavour, layers=1, levels=levels, queries=4).eval()
    for place, layer in [*model.named_modules()]:
        if isinstance(layer, MultiScaleAttention):
            model.set_submodule(place, layer.graph_form())
    rows = Rows(model)
    with torch.no_grad():
        program = export(rows, (torch.randn(2, 3, 64, 96),), dynamic_shapes={"batch": {0: Dim.AUTO}}, strict=False)
        batch = torch.randn(3, 3, 64, 96)
        for got, wanted in zip(program.module()(batch), rows(batch), strict=True):
            assert got.shape == wanted.shape and torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {step for step in used for word in ("embedding_bag", "nonzero", "native_multi_head") if word in step}


@pytest.mark.slow
def test_dino_is_exported_whole_for_one_size():
    model = detector("dino", flavour="mmdet", layers=1).eval()
    batch = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = export(model, (batch,), strict=False).module()(batch)
    for got, wanted in zip(found, model(batch), strict=True):
        assert all(torch.allclose(got[part], wanted[part], rtol=1e-5, atol=1e-5) for part in wanted)
