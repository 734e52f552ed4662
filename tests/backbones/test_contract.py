"""The backbone contract: one suite, every registered model in a toy form, full variants on the meta device.

Here is what a model is; what it computes, in each precision, layout and form, is in `test_contract_numbers.py`.
"""

import copy
import math
import pickle

import pytest
import timm
import timm.data
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import convattn
from convattn.backbones.costs import COSTS
from registered import every_model, every_toy
from toys import TOYS, build_toy, family_file, relative_error, timm_name, toy, toy_images


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def classifier_of(model: nn.Module) -> str:
    """What the names of the last layer's parameters begin with."""
    return model.pretrained_cfg["classifier"] + "."


def stem_of(model: nn.Module) -> str:
    """What the names of the stem's parameters begin with."""
    return model.pretrained_cfg["first_conv"].split(".")[0] + "."


def reductions(model: nn.Module) -> list[int]:
    return [info["reduction"] for info in model.feature_info]


# The table itself


@every_model
def test_every_family_has_a_toy(name):
    assert family_file(name) in TOYS, f"add a row for {family_file(name)} to tests/toys.py"


@every_model
def test_every_variant_has_its_parameter_count(name):
    with torch.device("meta"):
        model = convattn.create_model(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert num_parameters(model) == COSTS[name].parameters


@every_model
def test_is_registered_in_timm_under_the_same_name(name):
    assert timm.is_model(timm_name(name))
    with torch.device("meta"):
        model = timm.create_model(timm_name(name), num_classes=3, **toy(name).options)
    assert model.num_classes == 3


# Levels


@every_toy
@pytest.mark.parametrize("size", ["odd", "64", "least"])
def test_levels_have_the_channels_and_strides_of_feature_info(name, size):
    model = build_toy(name)
    height, width = {"odd": toy(name).image_size, "64": (64, 96), "least": (toy(name).least_size,) * 2}[size]
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, height, width), intermediates_only=True)
    assert len(levels) == len(model.feature_info)
    assert reductions(model) == sorted(set(reductions(model)))
    for level, info in zip(levels, model.feature_info, strict=True):
        stride = info["reduction"]
        assert level.shape[:2] == (1, info["num_chs"])
        for got, side in zip(level.shape[2:], (height, width), strict=True):
            assert max(1, side // stride) <= got <= math.ceil(side / stride)
        assert level.isfinite().all()


@every_toy
def test_levels_are_the_outputs_of_the_modules_that_feature_info_names(name):
    model = build_toy(name)
    seen = []
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(lambda _m, _args, out: seen.append(out))
    with torch.no_grad():
        levels = model.forward_intermediates(toy_images(name), intermediates_only=True)
    assert all(torch.equal(level, out) for level, out in zip(levels, seen, strict=True))


@every_toy
def test_forward_intermediates_follows_timms_protocol(name):
    model, images = build_toy(name), toy_images(name)
    count = len(model.feature_info)
    with torch.no_grad():
        final, levels = model.forward_intermediates(images)
        assert torch.equal(final, model.forward_features(images))
        assert torch.equal(model.forward_head(final), model(images))
        assert len(levels) == count

        last_two = model.forward_intermediates(images, indices=2, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(last_two, levels[-2:], strict=True))
        picked = model.forward_intermediates(images, indices=[0, -1], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(picked, (levels[0], levels[-1]), strict=True))

        (normed,) = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        if model.num_features == model.feature_info[-1]["num_chs"]:  # no layer widens the last level for the head
            assert torch.equal(normed, final)

        ran = []
        for info in model.feature_info:
            model.get_submodule(info["module"]).register_forward_hook(lambda *_, n=info["module"]: ran.append(n))
        first = count - 4  # of the stages: networks of timm count a level of the stem in front of them
        stopped, (level,) = model.forward_intermediates(images, indices=[first], stop_early=True)
        assert torch.equal(level, levels[first]) and torch.equal(stopped, levels[first])
        assert ran == [info["module"] for info in model.feature_info[: first + 1]]


@every_toy
def test_forward_intermediates_refuses_what_does_not_exist(name):
    model, images = build_toy(name), toy_images(name)
    count = len(model.feature_info)
    with pytest.raises(ValueError, match=rf"out_indices \[{count}\] do not exist; levels are 0 to {count - 1}"):
        model.forward_intermediates(images, indices=[count])
    with pytest.raises(ValueError, match="output_fmt 'NLC' is not available"):
        model.forward_intermediates(images, output_fmt="NLC")


@every_toy
def test_prune_intermediate_layers_keeps_the_levels_asked_for(name):
    model, images = build_toy(name), toy_images(name)
    whole = num_parameters(model)
    with torch.no_grad():
        levels = model.forward_intermediates(images, intermediates_only=True)
        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        pruned = model.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(pruned, levels[:2], strict=True))
    assert num_parameters(model) < whole
    assert isinstance(model.get_classifier(), nn.Identity)


@every_model
def test_features_only_gives_the_levels_asked_for(name):
    model, images = build_toy(name), toy_images(name)
    wanted = [index for index, stride in enumerate(reductions(model)) if stride in sorted(reductions(model))[1:3]]
    features = timm.create_model(timm_name(name), features_only=True, out_indices=wanted, **toy(name).options).eval()
    assert features.feature_info.reduction() == [reductions(model)[index] for index in wanted]
    assert features.feature_info.channels() == [model.feature_info[index]["num_chs"] for index in wanted]
    own = {k.removeprefix("model."): v for k, v in features.state_dict().items()}
    features.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items() if k in own})
    with torch.no_grad():
        levels = model.forward_intermediates(images, indices=wanted, intermediates_only=True)
        got = features(images)
    assert all(torch.equal(a, b) for a, b in zip(got, levels, strict=True))


# The head


@every_toy
def test_no_classes_gives_pooled_features(name):
    model, images = build_toy(name), toy_images(name)
    with torch.no_grad():
        features = model.forward_features(images)
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        assert torch.equal(model(images), pooled)
    assert relative_error(pooled, features.mean((2, 3))) < 1e-5
    assert pooled.shape == (2, model.num_features)
    assert num_parameters(convattn.create_model(name, num_classes=0, **toy(name).options)) == num_parameters(model)


@every_toy
@pytest.mark.parametrize("global_pool", ["avg", "max", "avgmax", "catavgmax", ""])
def test_global_pool_means_what_it_means_in_timm(name, global_pool):
    model, images = build_toy(name, global_pool=global_pool, num_classes=0), toy_images(name)
    with torch.no_grad():
        features = model.forward_features(images)
        got = model(images)
    mean, largest = features.mean((2, 3)), features.amax((2, 3))
    want = {
        "avg": mean,
        "max": largest,
        "avgmax": (mean + largest) / 2,
        "catavgmax": torch.cat([mean, largest], 1),
        "": features,
    }[global_pool]
    assert relative_error(got, want) < 1e-5


@every_toy
def test_reset_classifier_gives_a_fresh_one(name):
    model, images = build_toy(name), toy_images(name)
    before = model.get_classifier()
    model.reset_classifier(5, "max")
    assert model.get_classifier() is not before
    assert model.num_classes == model.get_classifier().out_features == 5
    with torch.no_grad():
        want = model.get_classifier()(model.forward_features(images).amax((2, 3)))
        assert relative_error(model(images), want) < 1e-5


@every_toy
def test_dropout_acts_in_training_only(name):
    model, images = build_toy(name, drop_rate=0.9), toy_images(name)
    with torch.no_grad():
        pooled = model.forward_features(images)
        evaluated = model.forward_head(pooled)
        model.train()
        first, second = model.forward_head(pooled), model.forward_head(pooled)
    assert not torch.equal(first, second)
    assert not torch.equal(first, evaluated)


# Images


@every_toy
@pytest.mark.parametrize("in_chans", [1, 5])
def test_any_number_of_image_channels(name, in_chans):
    model = build_toy(name, in_chans=in_chans)
    assert model(toy_images(name, in_chans=in_chans)).shape == (2, 7)


@every_toy
def test_wrong_images_are_refused_in_one_line(name):
    model = build_toy(name)
    height, width = toy(name).image_size
    with pytest.raises(ValueError, match=r"input has 1 channels, this model takes 3; .* in_chans=1$"):
        model(torch.zeros(1, 1, height, width))
    with pytest.raises(ValueError, match=rf"input of shape \(3, {height}, {width}\): expected a batch of images"):
        model(torch.zeros(3, height, width))
    least = toy(name).least_size
    if least > 1:
        wanted = (
            rf"input of {least - 1} x {width} pixels is too small; the nearest size that works is {least} x {width}"
        )
        with pytest.raises(ValueError, match=wanted):
            model(torch.zeros(1, 3, least - 1, width))
        with pytest.raises(ValueError, match="too small"):
            model.forward_intermediates(torch.zeros(1, 3, least - 1, width))


@every_model
def test_an_unknown_option_is_refused_with_the_nearest(name):
    option = next(iter(toy(name).options))
    with pytest.raises(ValueError, match=rf"unknown option '{option}_' of {name}; nearest: .*{option}"):
        convattn.create_model(name, **{f"{option}_": 1})


@every_model
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(drop_path_rate=1.5), "drop_path_rate 1.5 must be at least 0 and below 1"),
        (dict(drop_rate=-0.1), "drop_rate -0.1 must be at least 0 and below 1"),
        (dict(num_classes=-1), r"num_classes -1 must be 0 \(no head\) or more"),
    ],
)
def test_a_rate_or_number_out_of_range_is_refused(name, option, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model(name, **option)


# Parameters


@every_toy
def test_state_dicts_copies_and_pickles(name):
    model, images = build_toy(name), toy_images(name)
    other = build_toy(name)
    with torch.no_grad():
        want = model(images)
        assert not torch.equal(other(images), want)
        other.load_state_dict(model.state_dict(), strict=True)
        for same in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(same(images), want)


@every_toy
@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher_puts_every_parameter_in_order_of_depth(name, coarse):
    model = build_toy(name)
    groups = group_parameters(model, model.group_matcher(coarse=coarse), return_values=False, reverse=True)
    assert groups.keys() == {key for key, _ in model.named_parameters()}
    classifier = [groups[key] for key, _ in model.named_parameters() if key.startswith(classifier_of(model))]
    stem = [groups[key] for key, _ in model.named_parameters() if key.startswith(stem_of(model))]
    assert max(groups.values()) == max(classifier) and min(groups.values()) == min(stem) == max(stem)
    previous = min(stem)
    for info in model.feature_info:
        depth = [group for key, group in groups.items() if key.startswith(info["module"] + ".")]
        if not depth:  # an activation
            continue
        assert previous < min(depth) or (coarse and previous <= min(depth))
        previous = max(depth)


@every_toy
def test_layer_decay_gives_later_layers_larger_rates(name):
    model = build_toy(name)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    rate = {id(p): group["lr"] * group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert rate.keys() == {id(parameter) for parameter in model.parameters()}
    parameters = dict(model.named_parameters())
    classifier = next(p for p in model.get_classifier().parameters() if p.ndim == 2)
    stem = [parameter for key, parameter in parameters.items() if key.startswith(stem_of(model))]
    assert rate[id(classifier)] == 1.0
    assert all(rate[id(parameter)] < 0.5 for parameter in stem)
    assert all(decay[id(p)] == (0.0 if p.ndim < 2 else 0.05) for p in parameters.values())


@every_toy
def test_no_weight_decay_names_parameters(name):
    model = build_toy(name)
    assert set(model.no_weight_decay()) <= {key for key, _ in model.named_parameters()}


@every_toy
def test_builds_on_the_meta_device_at_toy_size(name):
    with torch.device("meta"):
        model = convattn.create_model(name, drop_path_rate=0.2, **toy(name).options)
        logits = model.eval()(torch.empty(2, 3, *toy(name).image_size))
    assert logits.is_meta and logits.shape == (2, 1000)


# What goes with the model


@every_model
def test_pretrained_cfg_names_what_a_user_needs(name):
    model = build_toy(name)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == timm_name(name)
    assert cfg["num_classes"] >= 1000 and len(cfg["input_size"]) == 3
    assert len(cfg["mean"]) == len(cfg["std"]) == 3
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.built_as["name"] == name and model.built_as["options"]["num_classes"] == 7
    again = convattn.create_model(model.built_as["name"], **model.built_as["options"])
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert timm.data.resolve_data_config({}, model=model)["input_size"] == cfg["input_size"]
