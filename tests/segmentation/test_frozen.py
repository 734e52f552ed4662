"""Parts of a segmenter's backbone that do not learn: they stay so whatever a run does."""

import copy

import pytest
import torch
from torch import nn

import convattn
from segmentation_toys import build_segmenter


def step(model):
    """One update of all that learns, on a batch that norms measure."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(logits.square().mean() for logits in model(torch.randn(2, 3, 64, 64)).values()).backward()
    optimizer.step()


def moved(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("name", ["nextvit_small", "cotnet_50"])
def test_frozen_stages_neither_learn_nor_measure(name):
    model = build_segmenter(name, frozen_stages=2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model)
    names = moved(model, before)
    first = ("backbone.stem.", "backbone.stages.0.", "backbone.conv1.", "backbone.layer1.")
    assert not any(name.startswith(first) for name in names)
    later = [*(f"backbone.stages.{i}." for i in (1, 2, 3)), *(f"backbone.layer{i}." for i in (2, 3, 4))]
    for part in (part for part in later if any(name.startswith(part) for name in before)):
        assert any(name.startswith(part) for name in names)
    assert "decode_head.conv_seg.weight" in names


def test_frozen_norms_keep_their_numbers_and_the_heads_do_not():
    model = build_segmenter("nextvit_small", frozen_norms=True).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model)
    names = moved(model, before)
    norms = {name for name, module in model.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert not {name for name in names if name.removeprefix("backbone.").rpartition(".")[0] in norms}
    assert "decode_head.bottleneck.bn.running_mean" in names
    assert any(name.startswith("backbone.") for name in names)


def test_what_is_frozen_survives_modes_and_thawing():
    model = build_segmenter(frozen_stages=1, frozen_norms=True)
    for change in (
        lambda: model.eval().train(),
        lambda: model.requires_grad_(False).requires_grad_(True),
        lambda: copy.deepcopy(model).train(),
    ):
        changed = change()
        stem = changed.backbone.stem
        assert not any(module.training for module in stem.modules())
        assert not any(parameter.requires_grad for parameter in stem.parameters())
        assert changed.backbone.stages[0].downsample.training
        assert all(parameter.requires_grad for parameter in changed.decode_head.parameters())


def test_an_attached_block_learns_in_a_frozen_stage():
    model = convattn.attach(build_segmenter("resnet50_das", frozen_stages=5), "se", init="paper").train()
    learns = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert learns
    assert all(".attached." in name for name in learns)


def test_it_is_told():
    assert "frozen_stages=2, frozen_norms=True" in repr(build_segmenter(frozen_stages=2, frozen_norms=True))


def test_one_image_needs_more_than_frozen_norms_of_the_backbone():
    model = build_segmenter(frozen_norms=True).train()
    refusal = r"cannot learn from one image at a time .* 2 images or more .* the head semantic_fpn and larger crops"
    with pytest.raises(ValueError, match=refusal):
        model(torch.randn(1, 3, 64, 64))
    other = build_segmenter(head="semantic_fpn", frozen_norms=True).train()
    other(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match=refusal):
        other(torch.randn(1, 3, 32, 32))
