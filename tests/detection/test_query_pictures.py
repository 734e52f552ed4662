"""`convattn predict --show queries`: where queries begin, how their boxes move, which places they read."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

from convattn.detection.options import PredictionOptions
from convattn.detection.query_pictures import detect_queries
from tiny_detectors import QUERIES, QUERY_IDS, detector

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (122, 180, 3), np.uint8))
NAMES = ["ant", "bee", "cat"]
ALL = PredictionOptions(score=0.0, show="queries")


def halved(view: Image.Image) -> torch.Tensor:
    """The model sees pictures at half their size."""
    return pil_to_tensor(view.resize((view.width // 2, view.height // 2))).float() / 255


def told(model, options=ALL):
    (said,) = detect_queries(model.eval(), [PICTURE], options, halved, NAMES)
    return said


@pytest.mark.parametrize(("name", "options"), QUERIES, ids=QUERY_IDS)
def test_boxes_end_where_objects_are_found(name, options):
    model = detector(name, **options)
    nn.init.normal_(model.head.box_movers[0][-2].weight, std=0.1) if name == "dino" else None
    said = told(model)
    assert len(said.queries) == len(said.scores) == 20 and said.steps[1:] == (
        ("layer 1", "layer 2") if name == "dino" else ("stage 1", "stage 2")
    )
    (found,) = model([halved(PICTURE)], original_sizes=[(122, 180)])
    assert said.queries.tolist() == found["queries"][:20].tolist()
    last, ends = said.boxes_of_steps[-1], np.array([180, 122, 180, 122])
    np.testing.assert_allclose(said.boxes_xyxy, last.clip(0, ends) if name == "dino" else last, rtol=1e-4, atol=1e-3)
    if name == "sparse_rcnn":  # which begins with the whole picture
        np.testing.assert_allclose(said.boxes_of_steps[0], np.broadcast_to([0, 0, 180, 122], (20, 4)), atol=1e-4)
        assert said.readings == ()
    assert not model._forward_hooks and not model.head._forward_hooks


def test_places_are_those_of_the_last_layer_in_pixels_of_the_picture():
    """Without offsets every point of every head lies in the middle of the box behind the layer before."""
    model = detector("dino")
    model.size_multiple = 128  # of what is seen a half is padding
    looking = model.head.decoder.layers[-1].cross_attention
    nn.init.zeros_(looking.sampling_offsets.bias)
    nn.init.normal_(model.head.box_movers[0][-2].weight, std=0.1)
    said = told(model)
    assert [each.size for each in said.readings] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    for each in said.readings:
        assert each.points_xy.shape == (20, 8 * 4, 2)
        wanted = np.broadcast_to(middles(said), each.points_xy.shape)
        np.testing.assert_allclose(each.points_xy, wanted, rtol=1e-3, atol=0.05)
        np.testing.assert_allclose(each.weights, 1 / (8 * 4 * 4), rtol=1e-4)
    with torch.no_grad():  # the first point of the first head: its offset counts in eighths of the box
        looking.sampling_offsets.bias.view(8, 4, 4, 2)[0, :, 0, 0] = 8.0
    said = told(model)
    wanted = np.repeat(middles(said), 32, axis=1)
    wanted[:, 0, 0] += said.boxes_of_steps[-2][:, 2] - said.boxes_of_steps[-2][:, 0]
    for each in said.readings:
        np.testing.assert_allclose(each.points_xy, wanted, rtol=1e-3, atol=0.05)


def middles(said) -> np.ndarray:
    """Of the boxes behind the layer before the last, (n, 1, 2)."""
    boxes = said.boxes_of_steps[-2]
    return (boxes[:, None, :2] + boxes[:, None, 2:]) / 2


def test_they_are_told_in_json_tables_lines_and_pictures():
    pytest.importorskip("matplotlib")
    said = told(detector("dino"), PredictionOptions(score=0.0, only=("bee",), show="queries"))
    assert {*said.class_names} == {"bee"} and len(said.queries) > 1
    one = said.as_json()["objects"][1]
    assert one["query"] == said.queries[1] == said.rows()[1]["query"]
    assert [*one["steps"]] == ["chosen", "layer 1", "layer 2"] and len(one["steps"]["layer 2"]) == 4
    assert np.shape(one["reads"]) == (4, 32, 3) and sum(
        w for level in one["reads"] for *_, w in level
    ) == pytest.approx(1)
    assert said.line().endswith(f"by the queries {', '.join(map(str, said.queries))}")
    panels = said.draw(PICTURE)
    assert panels.size == (3 * 480, 3 * (round(122 * 480 / 180) + 22))  # three steps, four levels
    assert np.asarray(panels)[-100:, -400:].min() == 255  # none beside the last
    nothing = told(detector("dino"), PredictionOptions(score=1.0, show="queries"))
    assert nothing.line() == "nothing found" and nothing.draw(PICTURE).size == panels.size
    assert nothing.as_json()["objects"] == nothing.rows() == []


def test_what_has_no_queries_is_one_line():
    with pytest.raises(ValueError, match=r"--show queries: retinanet_Trunk tells of no queries; take a run or a model"):
        told(detector("retinanet"))
    with pytest.raises(ValueError, match=r"--show queries: an exported file tells of no queries"):
        told(nn.Identity())
    with pytest.raises(ValueError, match=r"--show queries looks at whole pictures; leave out --tile"):
        PredictionOptions(show="queries", tile=64)
    with pytest.raises(ValueError, match=r"--show boxes is unknown; choose objects or queries"):
        PredictionOptions(show="boxes")
