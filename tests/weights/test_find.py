"""A model's weights are found in whatever people's scripts put around them."""

import warnings

import pytest
import torch
from official_files import TOY, official_toy

import convattn
from convattn.weights.errors import WeightsNote
from toys import build_toy


@pytest.fixture(scope="module")
def weights():
    return official_toy()


def load(content, **options):
    return convattn.load_official(build_toy(TOY, **options), content)


def assert_same_weights(model, other):
    state = other.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


PREFIXES = [
    "module.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model.backbone.",
    "net.",
    "encoder.",
    "student.module.",
]
PREFIXES += ["teacher.", "img_encoder.body.", "module.module.module.", "classifier_model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_come_off_in_any_order_and_number(weights, prefix):
    source, state = weights
    for content in (state, source.state_dict()):  # the authors' names and ours
        assert_same_weights(load({prefix + name: tensor for name, tensor in content.items()}), source)


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED = {
    "lightning": lambda state: {
        "state_dict": prefixed("model.", state),
        "hyper_parameters": {"lr": 0.1, "classes": ["a"]},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": []}],
        "pytorch-lightning_version": "2.5",
    },
    "an averaged model of torch": lambda state: {"n_averaged": torch.tensor(5), **prefixed("module.", state)},
    "of wrapped wrappers": lambda state: {"checkpoint": {"net": {"state_dict": prefixed("module.", state)}}},
    "beside a loss": lambda state: {"model": state, "loss": torch.tensor(0.3), "best": {"top1": torch.tensor(81.2)}},
    "beside an optimiser by names": lambda state: (
        {
            "optimizer": {"exp_avg": zeros(state), "exp_avg_sq": {}, "step": torch.tensor(3)},
            "params": state,
        }
        | {"optimizer": {"state": {index: {"m": torch.ones(2)} for index in range(3)}}}
    ),
    "flat, with figures among the weights": lambda state: {"epoch": 3, "top1": 0.8, **state},
    "of DINO": lambda state: {
        "teacher": prefixed("module.backbone.", state),
        "dino_loss": {"center": torch.ones(1, 9)},
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_dictionaries_come_off_in_any_order_and_number(weights, kind):
    source, state = weights
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is nothing to choose, so nothing is said
        if kind == "of DINO":
            warnings.simplefilter("default")
        assert_same_weights(load(WRAPPED[kind](state)), source)


AVERAGED = {"model": "model_ema", "state_dict": "state_dict_ema", "params": "params_ema", "net": "ema"}
AVERAGED |= {"student": "teacher", "model_state": "swa_model", "weights": "ema_state_dict"}


@pytest.mark.parametrize(("raw", "averaged"), AVERAGED.items())
@pytest.mark.parametrize("flat", [False, True])
def test_averaged_weights_come_first_and_that_is_said(weights, raw, averaged, flat):
    source, state = weights
    content = {raw: zeros(state), averaged: state}
    if flat:
        content = {f"{part}.{name}": tensor for part, weights in content.items() for name, tensor in weights.items()}
    with pytest.warns(WeightsNote, match=rf"^state dict: averaged weights {averaged} taken, left {raw}$") as caught:
        assert_same_weights(load(content), source)
    assert len(caught) == 1


def test_a_teacher_of_another_width_is_not_the_models_average(weights):
    source, state = weights
    teacher = convattn.to_official(build_toy(TOY, dims=(8, 16, 16, 32)))
    with pytest.warns(WeightsNote, match=r"student taken, left teacher$"):
        assert_same_weights(load({"student": state, "teacher": teacher}), source)


def test_of_a_detector_the_backbone_is_taken_and_the_rest_is_named():
    source, state = official_toy(num_classes=0)
    rest = {f"neck.convs.{index}.weight": torch.ones(1) for index in range(4)}
    rest |= {"roi_head.bbox_head.fc_cls.weight": torch.ones(2, 2), "rpn_head.weight": torch.ones(1)}
    content = {"meta": {"epoch": 12}, "state_dict": {**prefixed("backbone.", state), **rest}}
    said = r"state_dict.backbone taken, left what is beside it: neck \(4\), roi_head \(1\), rpn_head \(1\)$"
    with pytest.warns(WeightsNote, match=said) as caught:
        assert_same_weights(load(content, num_classes=0), source)
    assert len(caught) == 1


def test_dictionaries_that_hold_themselves_end(weights):
    source, state = weights
    content = {"a": {}, "model": state}
    content["a"]["b"] = content
    assert_same_weights(load(content), source)


@pytest.mark.parametrize("way", ["exp_avg", "optimizer.exp_avg", "optim.m", "opt.ExpAvgSq", "grads", "momentum_buffer"])
@pytest.mark.parametrize("flat", [False, True])
def test_what_an_optimiser_keeps_by_name_is_never_the_weights(weights, way, flat):
    source, state = weights
    kept = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    content = prefixed(f"{way}.", kept) | prefixed("net.", state) if flat else {"model": state}
    if not flat:
        for word in reversed(way.split(".")):
            kept = {word: kept}
        content = {**kept, **content}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeightsNote)
        assert_same_weights(load(content), source)
        with pytest.raises(convattn.weights.errors.CheckpointError):
            load({key: value for key, value in content.items() if not key.startswith(("model", "net."))})


@pytest.mark.parametrize("around", ["", "module.", "model."])
@pytest.mark.parametrize("layer", ["head.fc", "classifier"])
def test_a_head_beside_its_network_is_taken_and_that_is_said(around, layer):
    source = build_toy(TOY)
    content = {
        around + (f"backbone.{name}" if not name.startswith("head.") else name.replace("head.fc", layer)): tensor
        for name, tensor in source.state_dict().items()
    }
    with pytest.warns(WeightsNote, match=f"head taken from {around}{layer}, beside it$"):
        assert_same_weights(load({"state_dict": content, "meta": {}}), source)
    second = {f"{around}aux.{leaf}": source.get_parameter(f"head.fc.{leaf}") for leaf in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"head\.fc\.weight .* is missing in the file"):  # which of the two?
        load(content | second)


def test_an_entry_under_two_names_is_told(weights):
    source, state = weights
    with pytest.raises(ValueError, match=r"head\.weight \(\d+, \d+\) is in the file, not here"):
        load({**state, "head.fc.weight": torch.zeros_like(source.head.fc.weight)})
