"""Attaching changes nothing but what it adds: keys and outputs stay; what it cannot do leaves the model as it was."""

import copy
import json

import pytest
import timm
import torch
import torchvision
from torch import nn

import convattn
from attached import four_stages, inserted, resnet, shaken
from convattn.mixers.registry import is_gate, list_mixers
from networks import NETWORKS, build
from toys import randomise_norms, relative_error

every_network = pytest.mark.parametrize("name", NETWORKS)
every_mixer = pytest.mark.parametrize("mixer", list_mixers())


@every_network
def test_every_network_keeps_its_keys_and_outputs_and_comes_back(name):
    model, images = build(name)
    before = copy.deepcopy(model.state_dict())
    gated = convattn.attach(model, "se")
    assert {entry["place"]: entry["channels"] for entry in gated.surgery} == NETWORKS[name].stages
    assert {entry["layout"] for entry in gated.surgery} == {NETWORKS[name].layout}

    fitted = gated.load_state_dict(before, strict=False)
    assert set(fitted.missing_keys) == inserted(gated) != set()
    assert fitted.unexpected_keys == []

    with torch.no_grad():
        want = model(images)
        assert relative_error(gated(images), want) < 1e-6
        assert relative_error(shaken(gated)(images), want) > 1e-4
        assert torch.equal(convattn.detach(shaken(gated))(images), want)
    restored = convattn.detach(gated)
    assert list(restored.state_dict()) == list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in restored.modules())
    assert not hasattr(model, "surgery") and not hasattr(restored, "surgery")


@every_mixer
def test_every_mixer_starts_as_identity_and_comes_to_life(mixer):
    model, images = four_stages()
    changed = convattn.attach(model, mixer, where=["stem.1", "body"], input_size=(3, 28, 28))
    with torch.no_grad():
        assert relative_error(changed(images), model(images)) < 1e-6
    changed.train()
    alive = set()
    optimizer = torch.optim.SGD(changed.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (changed(images) * torch.randn(3)).square().sum().backward()
        alive = {key for key, p in changed.named_parameters() if p.grad is not None and p.grad.any()}
        if step == 0:
            optimizer.step()
    assert {key for key, _ in changed.named_parameters() if ".attached." in key} - alive == set()


@every_mixer
def test_every_mixer_starts_as_in_its_paper(mixer):
    model, _ = four_stages()
    changed = convattn.attach(model, mixer, where=["body"], init="paper", input_size=(3, 28, 28))
    attachment = changed.body.get_submodule("attached")
    assert attachment.scale is None
    x = torch.randn(2, 160, 14, 14)
    attachment.eval()
    with torch.no_grad():
        mixed = attachment.mixer(x)
        assert torch.equal(attachment.apply_to(x), mixed if is_gate(mixer) else x + mixed)
    assert attachment(x) is x


def test_options_reach_the_mixer_and_the_table():
    model, _ = resnet()
    changed = convattn.attach(model, "das", where=["layer4"], alpha=0.5)
    (entry,) = changed.surgery
    assert entry["options"] == {"alpha": 0.5}
    assert entry["parameters"] == sum(p.numel() for k, p in changed.named_parameters() if ".attached." in k)
    assert json.loads(json.dumps(changed.surgery)) == changed.surgery


def test_a_second_operation_adds_to_the_table_and_sees_the_first():
    model, images = resnet()
    once = convattn.attach(model, "se", where=["layer1"])
    twice = convattn.attach(once, "eca", where=["layer2"])
    assert [entry["mixer"] for entry in twice.surgery] == ["se", "eca"]
    assert [entry["mixer"] for entry in once.surgery] == ["se"]
    with torch.no_grad():
        assert torch.equal(convattn.detach(shaken(twice))(images), model(images))


def test_swins_maps_are_mixed_as_maps():
    model, images = build("timm swin")
    changed = convattn.attach(model, "eca", where=["layers.1"], init="paper")
    seen = []
    changed.layers[1].register_forward_hook(lambda _m, _args, output: seen.append(output))
    mixer = changed.layers[1].attached.mixer
    with torch.no_grad():
        model.layers[1].register_forward_hook(lambda _m, _args, output: seen.append(output))
        changed(images)
        model(images)
    gated, plain = seen
    with torch.no_grad():
        assert torch.equal(gated, mixer(plain.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_pvts_tokens_are_mixed_as_maps():
    model, _ = build("timm pvt")
    images = torch.randn(2, 3, 64, 96)
    places = [f"stages.{stage}.blocks.0.attn" for stage in range(4)]
    changed = convattn.attach(model, "group_aggregator", where=places, init="paper")
    assert {entry["layout"] for entry in changed.surgery} == {"tokens"}
    randomise_norms(changed)
    changed.eval()
    attention = changed.stages[1].blocks[0].attn
    mixer, seen = attention.attached.mixer, []
    plain = convattn.detach(changed).stages[1].blocks[0].attn
    attention.register_forward_hook(lambda _m, inputs, output: seen.append((inputs, output)))
    with torch.no_grad():
        changed(images)
        ((tokens, grid), mixed) = seen[0]
        assert grid == (8, 12)
        maps = plain(tokens, grid).mT.reshape(2, 64, 8, 12)
        assert relative_error(mixed, (maps + mixer(maps)).flatten(2).mT) < 1e-6
        fresh = convattn.attach(model, "group_aggregator", where="blocks")
        assert relative_error(fresh(images), model(images)) < 1e-6
        assert relative_error(shaken(fresh)(images), model(images)) > 1e-4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 12_438_830), ("resnet50", 36_903_598), ("resnet101", 55_895_726), ("mobilenet_v2", 3_832_193)],
)
def test_gates_on_torchvisions_networks_have_the_papers_size(name, parameters):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    assert sum(p.numel() for p in convattn.attach(model, "das").parameters()) == parameters


def test_training_mode_dtype_and_device_are_the_models():
    model, _ = resnet()
    changed = convattn.attach(model.double().train(), "se")
    assert all(p.dtype == torch.float64 for p in changed.parameters())
    assert all(module.training for module in changed.modules())
    with torch.device("meta"):
        on_meta = timm.create_model("test_resnet")
    assert all(p.is_meta for p in convattn.attach(on_meta, "se").parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mixer="daz"), r"unknown mixer 'daz'; nearest: das"),
        (dict(mixer="se", rd_ration=2), r"unknown option 'rd_ration' of mixer se; nearest: rd_ratio"),
        (dict(mixer="se", init="zero"), r"init 'zero' is unknown; choose identity or paper"),
        (dict(mixer="se", where="layers"), r"where 'layers' is unknown; choose stages, blocks, qkv, a list of names"),
        (dict(mixer="se", where=["layer5"]), r"ResNet has no module 'layer5'; nearest: layer"),
        (dict(mixer="se", where=[]), r"where is an empty list; name at least one module"),
        (dict(mixer="se", where=["fc"]), r"the output of fc has shape \(1, 3\), not that of a map \(B, C, H, W\)"),
        (dict(mixer="se", where=lambda name, module: False), r"chose none of the \d+ modules that run"),
        (dict(mixer="gma"), r"gma at layer1.0 \(32 channels\): .*dim 32 does not divide into .* segments; the nearest"),
        (
            dict(mixer="se", where=["layer1", "layer1"]),
            r"layer1.0 has a block attached already; detach the model first",
        ),
        (
            dict(mixer="se", input_size=(64, 0)),
            r"input_size \(64, 0\) must be a side, \(height, width\) or \(channels, height",
        ),
        (dict(mixer="se", input_size=(3, 0, 64)), r"input_size \(3, 0, 64\) must be .*, each 1 or more"),
        (dict(mixer=nn.ReLU), r"mixer is a type; give a name: bam, bat, "),
        (dict(mixer="se", where="layer4"), r"where 'layer4' is unknown; choose stages, blocks, qkv, a list of names"),
        (dict(mixer="se", where=None), r"where holds a NoneType; give stages, blocks, qkv, names of modules or a"),
        (dict(mixer="se", where=[nn.ReLU()]), r"where holds a ReLU; give stages"),
        (dict(mixer="se", where=[""]), r"ResNet has no module ''; known: act1, bn1, "),
        (dict(mixer="das", alpha=7), r"das at layer1.0 \(32 channels\): alpha 7 must be above 0 and at most 1"),
        (dict(mixer="das", alpha="x"), r"das at layer1.0 \(32 channels\): .*not supported between"),
        (dict(mixer="group_aggregator", kernels=(3, 5, 6)), r"layer1.0 \(32 channels\): kernel 6 must be odd"),
        (
            dict(mixer="se", input_size=(4, 64, 64)),
            r"ResNet does not run on an image of 4 x 64 x 64 \(.*\); give input",
        ),
    ],
)
def test_refusals(arguments, message):
    model, images = resnet()
    with torch.no_grad():
        want = model(images)
        with pytest.raises(ValueError, match=message) as error:
            convattn.attach(model, **arguments)
        assert torch.equal(model(images), want)
    assert "\n" not in str(error.value)
    assert not inserted(model)


def test_what_is_taken_or_missing_is_refused():
    model, _ = resnet()
    changed = convattn.attach(model, "das")
    with pytest.raises(ValueError, match=r"layer1.0 has a block attached already; detach the model first"):
        convattn.attach(changed, "se")
    with pytest.raises(ValueError, match=r"nothing is attached to this ResNet, so there is nothing to detach"):
        convattn.detach(model)
    model.layer1[0].attached = 3
    with pytest.raises(ValueError, match=r"layer1.0 has a member 'attached' of its own"):
        convattn.attach(model, "se")


def test_a_compiled_model_is_refused():
    model = torch.compile(resnet()[0])
    for operation in (lambda m: convattn.attach(m, "se"), lambda m: convattn.replace(m, "cot"), convattn.detach):
        with pytest.raises(TypeError, match=r"model is a compiled \w+; give the model itself, and compile the result"):
            operation(model)


@pytest.mark.parametrize(
    "operation",
    [lambda model: convattn.attach(model, "se"), lambda model: convattn.replace(model, "cot"), convattn.detach],
)
def test_a_name_instead_of_a_model_is_refused(operation):
    with pytest.raises(TypeError, match=r"model is a str, not a torch.nn.Module; build one with create_model"):
        operation("resnet18")
