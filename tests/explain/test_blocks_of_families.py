"""Response maps of GroupMixFormer, the maps around SMT's aggregation, the contexts of CoTNet."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convattn
from convattn.explain.captures import captures
from convattn.explain.contexts import (
    contexts,
    draw_local_weights,
    draw_shares,
    dynamic_shares,
    kernel_of,
    local_weights,
)
from convattn.explain.figures import as_picture
from convattn.explain.modulation_maps import modulation_maps
from convattn.explain.response_maps import response_maps
from toys import build_toy

IMAGES = (2, 3, 64, 64)


# GroupMixFormer


def with_segments(fill, **options):
    """The response maps of a toy whose block's projection is given what `fill` writes into (1, C, H, W) zeros."""
    model = build_toy("groupmixformer_nano", **options)
    block = model.stages[2].blocks[-1].token_mixer

    def replace(module, args):
        given = torch.zeros_like(args[0])
        fill(given)
        return (given,)

    handle = block.proj.register_forward_pre_hook(replace)
    found = response_maps(model, torch.randn(1, 3, 64, 64))
    handle.remove()
    return found


def test_two_channels_of_one_segment_at_one_position():
    def fill(given):
        given[0, 0, 1, 2], given[0, 1, 1, 2] = 3, 4

    found = with_segments(fill)
    assert found.block == "stages.2.blocks.1.token_mixer"
    titles = [
        "ensemble",
        "single tokens",
        "groups of 3 x 3",
        "groups of 5 x 5",
        "groups of 7 x 7",
        "beside the attention",
    ]
    assert [*found.maps] == titles
    scaled = torch.zeros(1, 1, 8, 8)
    scaled[0, 0, 1, 2] = 1
    torch.testing.assert_close(found.maps["single tokens"], F.interpolate(scaled, (64, 64), mode="bilinear")[:, 0])
    assert not any(found.maps[title].any() for title in titles[2:])


def test_the_norm_and_the_scale():
    def fill(given):
        given[0, 0] = 3.0  # the map's least value is 3, not 0
        given[0, :2, 1, 2] = torch.tensor([3.0, 4.0])
        given[0, 0, 5, 5] = 4.0

    scaled = torch.zeros(1, 1, 8, 8)
    scaled[0, 0, 1, 2], scaled[0, 0, 5, 5] = 1, (4 - 3) / (5 - 3)
    want = F.interpolate(scaled, (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(with_segments(fill).maps["single tokens"], want)


def test_channels_within_a_segment_do_not_matter_and_segments_are_in_order():
    width = 4  # of a fifth of 20 channels

    def at(channel):
        def fill(given):
            given[0, channel, 1, 2] = 1.0

        return with_segments(fill).maps

    for segment in range(5):
        lit = [any(bool(m.any()) for m in [maps]) for maps in list(at(segment * width).values())[1:]]
        assert lit == [other == segment for other in range(5)]
        first, last = at(segment * width), at(segment * width + width - 1)
        for title in [*first][1:]:
            assert torch.equal(first[title], last[title])


@pytest.mark.parametrize(
    ("aggregators", "titles"),
    [
        ("off", ["all tokens"]),
        (
            ("off", "dwconv", "off", "max", "off"),
            ["single tokens", "groups of 3 x 3", "segment 2, as it is", "groups of 7 x 7", "segment 4, as it is"],
        ),
    ],
)
def test_other_aggregators(aggregators, titles):
    model = build_toy("groupmixformer_nano", aggregators=aggregators, dims=(40, 40, 40, 40), inner_dims=None)
    found = response_maps(model, torch.randn(IMAGES), layer=2)
    assert [*found.maps] == ["ensemble", *titles]
    assert found.maps["ensemble"].shape == (2, 64, 64)


# SMT


def test_before_and_after_are_what_the_block_computes():
    model = build_toy("smt_nano", depths=(2, 1, 3, 1)).train()
    found = modulation_maps(model, torch.randn(IMAGES))
    assert [*found] == [f"stages.{at}.token_mixer" for at in ("0.blocks.1", "1.blocks.0", "2.blocks.2")]
    name = "stages.2.blocks.2.token_mixer"
    with captures(model, [f"{name}.mixed_conv"], [f"{name}.aggregation"]) as kept, torch.no_grad():
        torch.manual_seed(3)
        images = torch.randn(IMAGES)
        model(images)
        before = kept.inputs[f"{name}.aggregation"]
        after = model.get_submodule(f"{name}.aggregation")(before)
    got = modulation_maps(model, images, [name])[name]
    torch.testing.assert_close(got[0], before.abs().mean(1))
    torch.testing.assert_close(got[1], after.abs().mean(1))
    assert all(module.training for module in model.modules())


def test_without_aggregation_both_are_equal():
    model = build_toy("smt_nano", aggregation=False)
    for before, after in modulation_maps(model, torch.randn(IMAGES)).values():
        assert torch.equal(before, after)


def test_an_aggregation_without_weights_leaves_its_bias():
    model = build_toy("smt_nano")
    aggregation = model.stages[0].blocks[0].token_mixer.aggregation
    nn.init.zeros_(aggregation.proj.weight)
    _, after = modulation_maps(model, torch.randn(IMAGES), ["stages.0"])["stages.0.blocks.0.token_mixer"]
    torch.testing.assert_close(after, aggregation.proj.bias.abs().mean().expand_as(after))


# CoTNet


def without_gate(name="cotnet_50", **options):
    model = build_toy(name, **options)
    for module in model.modules():
        if hasattr(module, "gate"):
            nn.init.zeros_(module.gate[3].weight)
            nn.init.zeros_(module.gate[3].bias)
    return model


@pytest.mark.parametrize("name", ["cotnet_50", "cotnext_50"])
def test_a_gate_of_zeros_gives_the_mean_of_both_contexts(name):
    found = contexts(without_gate(name), torch.randn(IMAGES))
    assert found.block == "layer3.1.conv2"
    assert torch.equal(found.shares, torch.full_like(found.shares, 0.5))
    assert torch.equal(found.output, (found.static + found.dynamic) / 2)
    assert (found.static >= 0).all()  # behind its ReLU
    assert found.dynamic.min() < 0  # behind a SiLU


def test_the_shares_are_of_the_dynamic_context():
    model = without_gate()
    block = model.get_submodule("layer3.1.conv2")
    block.gate[3].bias.data[0::2] = 50.0  # the first of two logits a channel
    found = contexts(model, torch.randn(IMAGES))
    assert torch.equal(found.shares, torch.ones_like(found.shares))
    torch.testing.assert_close(found.output, found.dynamic)
    block.gate[3].bias.data[0::2], block.gate[3].bias.data[1::2] = 0.0, 50.0
    found = contexts(model, torch.randn(IMAGES))
    assert found.shares.max() < 1e-20
    torch.testing.assert_close(found.output, found.static)
    model = build_toy("cotnet_50")
    found = contexts(model, torch.randn(IMAGES))
    blended = found.shares[..., None, None] * found.dynamic + (1 - found.shares[..., None, None]) * found.static
    torch.testing.assert_close(found.output, blended)


def test_shares_of_all_blocks():
    model = build_toy("cotnet_50").train()
    shares = dynamic_shares(model, torch.randn(IMAGES))
    assert [*shares] == [f"layer{at}.conv2" for at in ("1.0", "2.0", "3.0", "3.1", "4.0")]
    assert all(((share > 0) & (share < 1)).all() for share in shares.values())
    assert as_picture(draw_shares({"a": shares})).size == (540, 340)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("fusion", "has_dynamic"), [("static", False), ("dynamic", True), ("sum", True)])
def test_other_fusions(fusion, has_dynamic):
    model = build_toy("cotnet_50", fusion=fusion)
    found = contexts(model, torch.randn(IMAGES))
    assert (found.dynamic is not None) == has_dynamic
    assert found.shares is None
    with pytest.raises(ValueError, match=r"^no block of this \w+ blends its contexts \(fusion is not 'attention'\)$"):
        dynamic_shares(model, torch.randn(IMAGES))
    if not has_dynamic:
        assert torch.equal(found.output, found.static)
        with pytest.raises(ValueError, match=r"^layer3.1.conv2 has the static context alone, no local weights; choose"):
            local_weights(model, torch.randn(IMAGES), (0, 0))


@pytest.mark.parametrize("name", ["cotnet_50", "cotnext_50"])
def test_local_weights_are_those_that_the_block_sums_with(name):
    """The sum over the neighbourhood, channel by channel, by the weights that are shown."""
    model, images, (row, column) = build_toy(name), torch.randn(IMAGES), (1, 2)
    block_name, weights = local_weights(model, images, (row, column))
    assert block_name == "layer3.1.conv2"
    block = model.get_submodule(block_name)
    reads = [f"{block_name}.value", f"{block_name}.aggregation"]
    with captures(model, reads) as kept, torch.no_grad():
        model(images)
    values, summed = (kept.outputs[read] for read in reads)
    padded = F.pad(values, (1, 1, 1, 1))
    for channel in range(block.dim):
        window = padded[:, channel, row : row + 3, column : column + 3]
        want = (window * weights[:, kernel_of(block, channel)]).sum((1, 2))
        torch.testing.assert_close(summed[:, channel, row, column], want, rtol=1e-4, atol=1e-5)
    assert as_picture(draw_local_weights(weights[0])).width > 0


def test_places_that_are_not_there():
    model, images = build_toy("cotnet_50"), torch.randn(IMAGES)
    with pytest.raises(ValueError, match=r"^position 9, 0 is off the map of layer3.1.conv2, which is 4 x 4$"):
        local_weights(model, images, (9, 0))
    with pytest.raises(ValueError, match=r"^channel -1 must be 0 to \d+$"):
        kernel_of(model.get_submodule("layer1.0.conv2"), -1)
    with pytest.raises(ValueError, match=r"fused and has no inner tensors for contexts; give the unfused form$"):
        contexts(convattn.fuse(model), images)
