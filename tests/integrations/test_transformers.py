"""transformers takes our models as its `TimmBackbone`."""

import torch
from transformers import TimmBackbone, TimmBackboneConfig

import convattn  # registers the names that the backbones are looked up by  # noqa: F401


def test_a_backbone_trains_a_step():
    # As in transformers' own models, 0 is the stem-side level and -1 the last.
    config = TimmBackboneConfig(backbone="smt_tiny", use_pretrained_backbone=False, out_indices=(1, 3))
    backbone = TimmBackbone(config).train()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-3)
    before = {key: parameter.detach().clone() for key, parameter in backbone.named_parameters()}
    maps = backbone(torch.randn(2, 3, 64, 64)).feature_maps
    assert [tuple(level.shape) for level in maps] == [(2, 128, 8, 8), (2, 512, 2, 2)]
    assert list(backbone.channels) == [128, 512]
    sum(level.square().mean() for level in maps).backward()
    optimizer.step()
    unmoved = [key for key, parameter in backbone.named_parameters() if torch.equal(parameter, before[key])]
    assert unmoved == []
