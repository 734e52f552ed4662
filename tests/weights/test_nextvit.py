"""Next-ViT under the authors' names and under timm's, both ways."""

import argparse
import warnings

import pytest
import timm
import torch
from timm.models.nextvit import checkpoint_filter_fn as timms_names

import convattn
from convattn.backbones.recognise import recognise
from convattn.weights.nextvit import nextvit_names
from convattn.weights.official import convert_official
from convattn.weights.read import CheckpointError
from golden_file import official_shapes
from toys import build_toy, toy, toy_images

TOY = "nextvit_small"
VARIANTS = [f"nextvit_{size}{form}" for size in ("nano", "small", "base", "large") for form in ("", "_extra_norm")]


def on_meta(name, **options):
    with torch.device("meta"):
        return convattn.create_model(name, **options)


def assert_same_weights(model, other):
    state = other.state_dict()
    assert model.state_dict().keys() == state.keys()
    # timm's linear layers over tokens are 1×1 convolutions over maps here
    assert all(torch.equal(tensor.view_as(state[key]), state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_name_has_one_counterpart(variant):
    model = on_meta(variant)
    names = nextvit_names(model)
    ours = list(model.state_dict())
    theirs = [names.to_theirs(name) for name in ours]
    assert None not in theirs
    assert len(set(theirs)) == len(ours)
    assert [names.to_ours(name) for name in theirs] == ours


@pytest.mark.parametrize("variant", [f"nextvit_{form}" for form in ("small", "base", "large", "small_extra_norm")])
def test_names_and_shapes_are_those_of_the_authors(variant):
    ours = convattn.to_official(on_meta(variant))
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == official_shapes(variant)


@pytest.mark.parametrize("name", ["features.20.norm.weight", "features.0.attn.weight", "stages.0.blocks.0.norm", "x"])
def test_a_name_that_the_model_has_not(name):
    assert nextvit_names(on_meta("nextvit_small")).to_ours(name) is None


def test_blocks_are_counted_through_all_stages():
    names = nextvit_names(on_meta("nextvit_small"))
    assert names.to_theirs("stages.2.blocks.9.e_mhsa.q.weight") == "features.16.e_mhsa.q.weight"
    assert names.to_ours("features.6.mlp.conv1.bias") == "stages.1.blocks.3.mlp.fc1.bias"
    assert names.to_ours("proj_head.0.weight") == "head.fc.weight"


def test_an_official_file_goes_in_and_out(tmp_path):
    source, target = build_toy(TOY), build_toy(TOY)
    path = tmp_path / "checkpoint_best.pth"
    content = {"model": convattn.to_official(source), "epoch": 299, "args": argparse.Namespace(model="nextvit_small")}
    torch.save(content | {"optimizer": {"state": {}}, "lr_scheduler": {"t": 1}, "scaler": {}}, path)
    assert_same_weights(convattn.load_official(target, path), source)


def test_timms_weights_go_in_and_out():
    options = dict(depths=(1, 2, 5, 2), num_classes=3)
    theirs = timm.create_model("nextvit_small", **options)
    ours = convattn.create_model("nextvit_small", convs_per_transformer=(1, 1, 4, 1), **options)
    convattn.load_official(ours, theirs.state_dict())
    assert_same_weights(ours, theirs)
    again = timm.create_model("nextvit_small", **options)
    again.load_state_dict(timms_names(convattn.to_official(ours), again))
    assert_same_weights(again, theirs)


def test_the_unused_norm_is_accepted_reported_and_written_as_an_identity():
    source, target = (build_toy("nextvit_small_extra_norm") for _ in range(2))
    state = convattn.to_official(source)
    unused = torch.nn.BatchNorm2d(32)
    unused.load_state_dict({key.removeprefix("extra_norm_list.3."): t for key, t in state.items() if "list.3" in key})
    x = torch.randn(2, 32, 3, 3)
    assert torch.allclose(unused.eval()(x), x, rtol=1e-5)
    with pytest.warns(UserWarning, match=r"the authors' code never reads it: extra_norm_list.3.weight, ") as caught:
        convattn.load_official(target, state)
    assert len(caught) == 1
    assert_same_weights(target, source)


def test_a_plain_checkpoint_lacks_exactly_the_extra_norms():
    state = convattn.to_official(build_toy(TOY))
    model = build_toy("nextvit_small_extra_norm")
    missing = convert_official(state, model).missing
    assert {key.rpartition(".")[0] for key in missing} == {f"stages.{i}.norm" for i in range(3)}
    with pytest.warns(UserWarning, match=r"stages.0.norm.weight \(8,\) is missing in the file"):
        convattn.load_official(model, state, strict=False)
    assert torch.equal(model.stages[3].norm.weight, state["norm.weight"])


@pytest.mark.parametrize("variant", ["nextvit_small", "nextvit_small_extra_norm"])
def test_a_dense_backbone_file_fits_the_levels(variant, tmp_path):
    """The authors' detection code has neither classifier nor final norm; with extra norms it lacks the fourth."""
    source = build_toy(variant, num_classes=0)
    state = convattn.to_official(source)
    if variant == "nextvit_small":
        state = {key: tensor for key, tensor in state.items() if not key.startswith("norm.")}
    path = tmp_path / "backbone.pth"
    torch.save({"state_dict": {f"backbone.{key}": tensor for key, tensor in state.items()}}, path)
    features = convattn.create_model(variant, features_only=True, **toy(variant).options).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the authors' code never reads it")
        convattn.load_official(features, path)
    images = toy_images(variant)
    with torch.no_grad():
        levels = source.forward_intermediates(images, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(features(images), levels, strict=True))


def test_to_official_refuses_what_the_authors_have_not():
    with pytest.raises(CheckpointError, match=r"stages.0.blocks.0.1.conv1.weight of .* has no counterpart"):
        convattn.to_official(build_toy(TOY, conv_block="bottleneck"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nextvit_small", {}),
        pytest.param("nextvit_base", {"num_classes": 21}, marks=pytest.mark.slow),
        pytest.param("nextvit_large", {"in_chans": 1}, marks=pytest.mark.slow),
        pytest.param("nextvit_small_extra_norm", {}, marks=pytest.mark.slow),
    ],
)
def test_every_variant_is_recognised_with_its_options(name, options):
    found = recognise(convattn.to_official(on_meta(name, **options)))
    assert (found.name, dict(found.options)) == (name, options)


@pytest.mark.slow
def test_timms_files_are_recognised_too():
    with torch.device("meta"):
        state = timm.create_model("nextvit_base", num_classes=5).state_dict()
    found = recognise(state)
    assert (found.name, dict(found.options)) == ("nextvit_base", {"num_classes": 5})
