"""A segmenter in every form that runs it: fused, packed, exported, compiled, in other layouts and types."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import convattn
from convattn.deploy.graph_form import graph_form
from segmentation_toys import build_segmenter
from toys import lively, relative_error

HEADS = ["upernet", "semantic_fpn"]
SIZE = (65, 97)


@pytest.fixture(params=HEADS)
def model(request):
    return lively(build_segmenter("smt_tiny", request.param, depths=(1,) * 4))


@torch.no_grad()
@pytest.mark.parametrize("name", ["smt_tiny", "nextvit_small", "cotnet_50", "groupmixformer_tiny", "timm:test_resnet"])
@pytest.mark.parametrize("head", HEADS)
def test_fused_it_is_the_same_and_the_second_head_is_gone(name, head):
    model = lively(build_segmenter(name, head)).double()
    images = torch.randn(2, 3, *SIZE).double()
    fused = convattn.fuse(model)
    assert relative_error(fused(images), model(images)) < 1e-9
    assert fused.fusion_report.left == {}
    assert fused.fusion_report.kept == {}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.decode_head.modules())
    assert not any(name.startswith("auxiliary_head") for name, _ in fused.named_parameters())
    assert relative_error(graph_form(fused)(images), model(images)) < 1e-9


@torch.no_grad()
def test_packed_it_is_the_same(model):
    images = torch.randn(2, 3, *SIZE)
    assert relative_error(convattn.prepack(convattn.fuse(model), images)(images), model(images)) < 1e-5


@torch.no_grad()
def test_in_channels_last_it_is_the_same(model):
    images = torch.randn(2, 3, *SIZE)
    want = model(images)
    last = model.to(memory_format=torch.channels_last)
    assert relative_error(last(images.contiguous(memory_format=torch.channels_last)), want) < 1e-5


@torch.no_grad()
def test_under_autocast_it_is_nearly_the_same(model):
    images = torch.randn(2, 3, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    assert relative_error(logits.float(), model(images)) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.train()(images)
    sum(each.float().square().mean() for each in outputs.values())


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm:test_resnet", pytest.param("smt_tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("head", HEADS)
def test_its_graph_takes_batches_and_images_of_any_size(name, head):
    model = lively(build_segmenter(name, head))
    images = torch.randn(2, 3, *SIZE)
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    exported = torch.export.export(model, (images,), dynamic_shapes=(free,)).module()
    for shape in ((1, 64, 64), (3, 80, 45)):
        images = torch.randn(shape[0], 3, *shape[1:])
        assert relative_error(exported(images), model(images)) < 1e-5


@pytest.mark.slow
def test_compiled_it_is_one_graph_in_both_modes(model):
    images = torch.randn(2, 3, *SIZE)
    for head in (model.decode_head, model.auxiliary_head):
        if head is not None:
            head.dropout.p = 0.0
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(images), model(images)) < 1e-4
    model.train()
    want = model(images)
    got = compiled(images)
    assert all(relative_error(got[name], want[name]) < 1e-4 for name in want)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", ["batch", "all"])
def test_a_file_of_onnx_agrees_at_every_size_that_it_grants(model, dynamic, tmp_path):
    pytest.importorskip("onnxruntime")
    report = convattn.export(model, tmp_path / "model.onnx", dynamic=dynamic, input_size=(64, 96))
    assert report.kept
    assert report.checks


def test_its_parts_are_counted_one_by_one(model):
    count = convattn.count(model, SIZE)
    rows = {row.name: row for row in count.rows}
    stages = [f"backbone.stages.{index}" for index in range(4)]
    assert [*rows][:5] == ["backbone.stem", *stages]
    assert {*rows} >= {"decode_head"}
    assert sum(row.macs for row in count.rows) == count.macs
    assert sum(row.parameters for row in count.rows) == count.parameters
    if model.auxiliary_head is not None:
        assert rows["auxiliary_head"].macs == 0  # it does not run in evaluation
