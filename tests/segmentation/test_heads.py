"""Heads against the same written plainly, and against other libraries' parts."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation.fcn import FCNHead as TorchvisionFCNHead
from torchvision.ops import FeaturePyramidNetwork

from convattn.segmentation.fcn import AuxiliaryHead, FCNHead
from convattn.segmentation.grid_mean import GridMean
from convattn.segmentation.head import Head, Unit
from convattn.segmentation.semantic_fpn import FPNHead, Neck
from convattn.segmentation.upernet import UPerHead
from toys import randomise_norms, relative_error

WIDTHS = (6, 10, 14, 18)
SIZES = {"even": [(16, 24), (8, 12), (4, 6), (2, 3)], "odd": [(19, 26), (10, 13), (5, 7), (3, 4)]}


@pytest.fixture(params=SIZES)
def levels(request):
    return [torch.randn(2, width, *size).double() for width, size in zip(WIDTHS, SIZES[request.param], strict=True)]


def evaluated(module):
    randomise_norms(module)
    return module.double().eval()


def unit(x, module):
    """A unit by torch's functions alone."""
    conv, bn = module.conv, module.bn
    x = F.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2)
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps).relu()


def bilinear(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def test_upernet_is_its_definition(levels):
    head = evaluated(UPerHead(WIDTHS, 8, 5, 0.1))
    pools = zip((1, 2, 3, 6), head.psp_modules, strict=True)
    pooled = [
        bilinear(unit(F.adaptive_avg_pool2d(levels[3], side), row[1]), levels[3].shape[2:]) for side, row in pools
    ]
    l3 = unit(torch.cat([levels[3], *pooled], 1), head.bottleneck)
    l2 = unit(levels[2], head.lateral_convs[2]) + bilinear(l3, levels[2].shape[2:])
    l1 = unit(levels[1], head.lateral_convs[1]) + bilinear(l2, levels[1].shape[2:])
    l0 = unit(levels[0], head.lateral_convs[0]) + bilinear(l1, levels[0].shape[2:])
    size = levels[0].shape[2:]
    joined = torch.cat(
        [
            unit(l0, head.fpn_convs[0]),
            bilinear(unit(l1, head.fpn_convs[1]), size),
            bilinear(unit(l2, head.fpn_convs[2]), size),
            bilinear(l3, size),
        ],
        1,
    )
    want = F.conv2d(unit(joined, head.fpn_bottleneck), head.conv_seg.weight, head.conv_seg.bias)
    assert relative_error(head(levels), want) < 1e-12


@torch.no_grad()
def test_upernet_is_smps_without_its_norms_of_levels(levels):
    decoder = smp.decoders.upernet.decoder.UPerNetDecoder(
        encoder_channels=(3, 4, *WIDTHS), encoder_depth=5, decoder_channels=8
    )
    norms = [name for name, module in decoder.named_modules() if name.startswith("feature_norms.")]
    assert norms
    decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in decoder.feature_norms)
    evaluated(decoder)
    head = evaluated(UPerHead(WIDTHS, 8, 5, 0.1))
    pairs = [(head.psp_modules[index][1], decoder.psp.blocks[index][1]) for index in range(4)]
    pairs += [(head.bottleneck, decoder.psp.out_conv), (head.fpn_bottleneck, decoder.fusion_block)]
    pairs += [(head.lateral_convs[2 - j], decoder.fpn_lateral_blocks[j].conv_norm_relu) for j in range(3)]
    pairs += [(head.fpn_convs[2 - j], decoder.fpn_conv_blocks[j]) for j in range(3)]
    for ours, theirs in pairs:
        state = [tensor for name, tensor in theirs.state_dict().items()]
        ours.load_state_dict(dict(zip(ours.state_dict(), state, strict=True)))
    got = []
    head.conv_seg.register_forward_pre_hook(lambda module, inputs: got.append(inputs[0]))
    head(levels)
    want = decoder([None, None, *levels])
    assert relative_error(got[0], want) < 1e-12


@torch.no_grad()
def test_the_neck_is_torchvisions(levels):
    ours = Neck(WIDTHS, 8).double()
    theirs = FeaturePyramidNetwork([*WIDTHS], 8).double()
    theirs.load_state_dict(ours.state_dict())
    want = theirs({str(index): level for index, level in enumerate(levels)})
    assert all(torch.equal(a, b) for a, b in zip(ours(levels), want.values(), strict=True))


@torch.no_grad()
def test_semantic_fpn_doubles_behind_each_unit_then_adds(levels):
    maps = [torch.randn(2, 8, *level.shape[2:]).double() for level in levels]
    head = evaluated(FPNHead(8, (4, 8, 16, 32), 4, 5, 0.1))
    total = unit(maps[0], head.scale_heads[0][0])
    for level, steps in ((1, 1), (2, 2), (3, 3)):
        x = maps[level]
        for step in range(steps):
            x = unit(x, head.scale_heads[level][2 * step])
            x = bilinear(x, [2 * side for side in x.shape[2:]])
        total = total + bilinear(x, total.shape[2:])
    want = F.conv2d(total, head.conv_seg.weight, head.conv_seg.bias)
    assert relative_error(head(maps), want) < 1e-12


@torch.no_grad()
def test_the_auxiliary_head_is_torchvisions_of_its_width():
    x = torch.randn(2, 16, 5, 7).double()
    theirs = evaluated(TorchvisionFCNHead(16, 5))  # a quarter as wide as its input
    ours = evaluated(AuxiliaryHead(16, 4, 5, 0.1))
    ours.load_state_dict(dict(zip(ours.state_dict(), reordered(theirs.state_dict()), strict=True)))
    assert relative_error(ours(x), theirs(x)) < 1e-12


def reordered(state):
    """Ours has the last layer first."""
    names = [*state]
    return [state[name] for name in names[-2:] + names[:-2]]


@torch.no_grad()
def test_an_fcn_head_of_several_units_may_see_its_input_again():
    head = evaluated(FCNHead(6, 8, 5, 0.1, num_convs=2, concat_input=True))
    x = torch.randn(2, 6, 9, 7).double()
    inside = unit(unit(x, head.convs[0]), head.convs[1])
    want = F.conv2d(unit(torch.cat([x, inside], 1), head.conv_cat), head.conv_seg.weight, head.conv_seg.bias)
    assert relative_error(head(x), want) < 1e-12
    assert {"convs.0.conv.weight", "convs.1.bn.weight", "conv_cat.conv.weight"} <= head.state_dict().keys()
    with pytest.raises(ValueError, match="num_convs 0 must be 1 or more"):
        FCNHead(6, 8, 5, 0.1, num_convs=0)


@torch.no_grad()
@pytest.mark.parametrize("side", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3), (1, 13)])
def test_a_mean_over_a_grid_is_that_of_its_cells_in_both_forms(side, size):
    x = torch.randn(2, 3, *size).double()
    want = torch.empty(2, 3, side, side).double()
    for row in range(side):
        for column in range(side):
            top, bottom = row * size[0] // side, -(-(row + 1) * size[0] // side)
            left, right = column * size[1] // side, -(-(column + 1) * size[1] // side)
            want[:, :, row, column] = x[:, :, top:bottom, left:right].mean((2, 3))
    assert relative_error(GridMean(side)(x), want) < 1e-12
    assert relative_error(GridMean(side).graph_form()(x), want) < 1e-12


def test_heads_start_as_the_references():
    head = UPerHead((64, 64, 64, 64), 128, 150, 0.1)
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.conv_seg.bias.any()
    weight = head.fpn_convs[0].conv.weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)  # by outputs, for ReLU
    neck = Neck((64, 32), 96)
    for conv, count in ((neck.inner_blocks[0][0], 64 + 96), (neck.layer_blocks[0][0], (96 + 96) * 9)):
        assert conv.weight.abs().max().item() == pytest.approx((6 / count) ** 0.5, rel=0.01)
        assert not conv.bias.any()


def test_whole_channels_are_dropped_in_training_only():
    head = Head(1000, 2, 0.25)
    seen = []
    head.conv_seg.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.ones(1, 1000, 3, 3)
    head.train().classify(x)
    values = seen[0].flatten(2)
    assert (values == values[..., :1]).all()
    assert values.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (values == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    head.eval().classify(x)
    assert torch.equal(seen[1], x)


def test_a_single_image_is_refused_where_the_norm_behind_the_mean_measures_it(levels):
    head = UPerHead(WIDTHS, 8, 5, 0.1).double()
    one = [level[:1] for level in levels]
    with pytest.raises(ValueError, match=r"cannot learn from one image at a time .* give 2 images or more a process"):
        head.train()(one)
    head.train()(levels)
    head.eval()(one)
    for module in head.train().modules():  # frozen norms do not measure
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    head(one)


def test_a_unit_in_its_inference_form_is_the_same():
    for kernel_size in (1, 3):
        module = evaluated(Unit(6, 4, kernel_size))
        x = torch.randn(2, 6, 5, 7).double()
        assert relative_error(module.fused()(x), module(x)) < 1e-12
