"""Attaching changes nothing but what it adds: keys, outputs at the start, and everything users do with models."""

import copy
import json
import pickle

import pytest
import timm
import torch
import torchvision
from timm.models import FeatureListNet
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor

import convattn
from convattn.mixers.contextual_transformer import CoTAttention
from convattn.mixers.deformable_gate import DeformableGate
from convattn.mixers.registry import is_gate, list_mixers
from convattn.mixers.scale_aware_modulation import ScaleAwareModulation
from convattn.surgery.attachment import Attachment
from networks import NETWORKS, build
from toys import build_toy, randomise_norms, relative_error, toy_images

every_network = pytest.mark.parametrize("name", NETWORKS)
every_mixer = pytest.mark.parametrize("mixer", list_mixers())


class FourStages(nn.Module):
    """A network whose maps suit every mixer: 160 channels divide by 4, 5, 8, 16 and 32; 14 x 14 by 7."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 160, 3, 2, 1, bias=False), nn.BatchNorm2d(160), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(160, 160, 3, 1, 1, groups=160), nn.BatchNorm2d(160), nn.ReLU())
        self.fc = nn.Linear(160, 3)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def four_stages():
    model = FourStages()
    randomise_norms(model)
    return model.eval(), torch.randn(4, 3, 28, 28)


def resnet():
    model = timm.create_model("test_resnet", num_classes=3)
    randomise_norms(model)
    return model.eval(), torch.randn(2, 3, 64, 64)


def shaken(model):
    """Every inserted weight away from its start, so that a block that does not run shows."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Attachment):
            for parameter in module.parameters():
                parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def inserted(model):
    return {key for key in model.state_dict() if ".attached." in key}


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


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name].num_blocks])
def test_blocks_are_found(name):
    model, images = build(name)
    gated = convattn.attach(model, "eca", where="blocks")
    assert len(gated.surgery) == NETWORKS[name].num_blocks
    with torch.no_grad():
        assert relative_error(gated(images), model(images)) < 1e-6


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


def test_blocks_of_an_attached_model_are_its_own():
    model, _ = resnet()
    names = [entry["place"] for entry in convattn.attach(model, "sam", where="blocks", num_heads=2).surgery]
    changed = convattn.attach(model, "sam", where=["conv1"], num_heads=2)
    assert [entry["place"] for entry in convattn.attach(changed, "eca", where="blocks").surgery[1:]] == names


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18_das", [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]),
        ("mobilenetv2_das", [f"blocks.{i}.{j}" for i, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(depth)]),
    ],
)
def test_gates_that_a_network_has_already_are_no_blocks(name, blocks):
    with torch.device("meta"):
        model = convattn.create_model(name)
    assert [entry["place"] for entry in convattn.attach(model, "se", where="blocks").surgery] == blocks


def test_a_choice_by_function():
    model, images = resnet()
    changed = convattn.attach(
        model, "se", where=lambda name, module: isinstance(module, nn.BatchNorm2d) and "2" in name
    )
    assert changed.surgery and all("2" in entry["place"] for entry in changed.surgery)
    with torch.no_grad():
        assert relative_error(changed(images), model(images)) < 1e-6


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


# What users do with models


def test_copies_pickles_and_state_dicts():
    model, images = resnet()
    changed = shaken(convattn.attach(model, "das"))
    other = shaken(convattn.attach(model, "das"))
    with torch.no_grad():
        want = changed(images)
        assert torch.equal(copy.deepcopy(changed)(images), want)
        assert torch.equal(pickle.loads(pickle.dumps(changed))(images), want)
        assert not torch.equal(other(images), want)
        other.load_state_dict(changed.state_dict())
        assert torch.equal(other(images), want)


def test_a_copy_runs_its_own_block():
    model, images = resnet()
    changed = convattn.attach(model, "se", init="paper")
    twin = shaken(changed)
    with torch.no_grad():
        before = changed(images)
        twin(images)
        assert torch.equal(changed(images), before)
        assert not torch.equal(twin(images), before)


def test_other_hooks_never_take_its_place(monkeypatch):
    model, images = resnet()
    changed = shaken(convattn.attach(model, "se"))
    with torch.no_grad():
        want = changed(images)
        loaded = pickle.loads(pickle.dumps(changed))
        monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", 0)  # as in a fresh process
        handles = [loaded.layer1[0].register_forward_hook(lambda *_: None) for _ in range(20)]
        assert torch.equal(loaded(images), want)
        for handle in handles:
            handle.remove()
        assert torch.equal(loaded(images), want)


def test_compiles_as_one_graph():
    model, images = resnet()
    changed = shaken(convattn.attach(model, "se"))
    compiled = torch.compile(changed, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert relative_error(compiled(images), changed(images)) < 1e-6


def test_torch_export():
    model, images = resnet()
    changed = shaken(convattn.attach(model, "cot", where=["layer3", "layer4"]))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(changed, (images,), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        more = torch.randn(3, 3, 64, 64)
        assert relative_error(program(more), changed(more)) < 1e-5


def test_gradient_checkpointing_runs_the_blocks_too():
    model, images = resnet()
    changed = shaken(convattn.attach(model, "das")).double()
    images = images.double().requires_grad_()
    want = changed(images)
    changed.train().set_grad_checkpointing()
    for module in changed.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert relative_error(changed(images), want) < 1e-9


@pytest.mark.parametrize("name", ["timm resnet", "timm regnet", "timm convnext", "timm efficientnet", "timm swin"])
def test_timms_feature_extractors_see_the_new_maps(name):
    model, images = build(name)
    changed = shaken(convattn.attach(model, "se"))
    places = [entry["place"] for entry in changed.surgery]
    seen = {}
    for place in places:
        changed.get_submodule(place).register_forward_hook(lambda _m, _a, out, place=place: seen.update({place: out}))
    with torch.no_grad():
        levels = changed.forward_intermediates(images, intermediates_only=True)
    for place in places:
        maps = seen[place].permute(0, 3, 1, 2) if name == "timm swin" else seen[place]
        assert any(level.shape == maps.shape and torch.equal(level, maps) for level in levels), place


def test_feature_list_net_around_and_inside():
    model, images = resnet()
    changed = shaken(convattn.attach(model, "se"))
    with torch.no_grad():
        want = changed.forward_intermediates(images, intermediates_only=True)
        got = FeatureListNet(changed, out_indices=(0, 1, 2, 3, 4))(images)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    for feature_cls in ("list", "hook", "getter"):
        features = timm.create_model("test_resnet", features_only=True, feature_cls=feature_cls).eval()
        gated = convattn.attach(features, "se")
        assert len(gated.surgery) == 4
        with torch.no_grad():
            same = zip(gated(images), features(images), strict=True)
            assert all(relative_error(a, b) < 1e-6 for a, b in same)
            different = zip(shaken(gated)(images)[1:], features(images)[1:], strict=True)
            assert all(relative_error(a, b) > 1e-4 for a, b in different)


def test_torchvisions_feature_extractors_see_the_new_maps():
    model, images = build("torchvision resnet")
    changed = shaken(convattn.attach(model, "se"))
    names = {f"layer{level}": str(level) for level in range(1, 5)}
    seen = []
    for name in names:
        changed.get_submodule(name).register_forward_hook(lambda _m, _a, output: seen.append(output))
    with torch.no_grad():
        changed(images)
        want, seen[:] = list(seen), []
        getter = IntermediateLayerGetter(changed, names)(images)
        traced = create_feature_extractor(changed, names)(images)
    assert all(torch.equal(getter[key], level) for key, level in zip("1234", want, strict=True))
    assert all(torch.equal(traced[key], level) for key, level in zip("1234", want, strict=True))


@pytest.mark.parametrize(
    ("mixer", "leaf"), [("das", DeformableGate), ("cot", CoTAttention), ("sam", ScaleAwareModulation)]
)
def test_a_symbolic_tracer_passes_mixers_that_it_is_told_to_leave_whole(mixer, leaf):
    model, images = build("torchvision resnet")
    changed = shaken(convattn.attach(model, mixer))
    whole = {"leaf_modules": [leaf]}
    with torch.no_grad():
        traced = create_feature_extractor(changed, {"layer4": "map"}, tracer_kwargs=whole)(images)
        want = IntermediateLayerGetter(changed, {"layer4": "map"})(images)
    assert torch.equal(traced["map"], want["map"])


def test_a_pyramid_for_detection_sees_the_new_maps():
    model, images = build("torchvision resnet")
    changed = shaken(convattn.attach(model, "se"))
    names = {f"layer{level}": str(level) for level in range(1, 5)}
    with torch.no_grad():
        levels = IntermediateLayerGetter(changed, names)(images)
        neck = BackboneWithFPN(changed, names, [64, 128, 256, 512], 16).eval()
        got, want = neck(images), neck.fpn(levels)
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in got)


def test_count_counts_what_was_attached():
    model, _ = resnet()
    changed = convattn.attach(model, "das")
    plain, gated = (convattn.count(m, (3, 64, 64)) for m in (model, changed))
    assert gated.parameters - plain.parameters == sum(entry["parameters"] for entry in changed.surgery)
    assert gated.macs > plain.macs
    assert [row.name for row in gated.rows] == [row.name for row in plain.rows]


def test_fuse_keeps_what_hangs_on_a_block():
    model, images = build_toy("smt_nano"), toy_images("smt_nano")
    # Behind the attention, too, which has an inference form of its own, and inside one.
    places = ["stages.1.blocks.0", "stages.2.blocks.1.token_mixer", "stages.3.blocks.0.token_mixer.local_conv"]
    changed = shaken(convattn.attach(model, "sam", where=places, num_heads=2)).double()
    fused = convattn.fuse(changed)
    images = images.double()
    with torch.no_grad():
        assert relative_error(changed(images), model.double()(images)) > 1e-4
        assert relative_error(fused(images), changed(images)) < 1e-9
    assert any(part.name.endswith("attached.mixer") for part in fused.fusion_report)


def test_prepack_keeps_what_hangs_on_a_layer():
    model, images = four_stages()
    changed = shaken(convattn.attach(model, "se", where=["stem.0", "body.2"], input_size=(3, 28, 28)))
    with torch.no_grad():
        assert relative_error(convattn.prepack(changed, images)(images), changed(images)) < 1e-5


def test_exported_with_proof(tmp_path):
    model, _ = resnet()
    changed = shaken(convattn.attach(model, "das", where=["layer4"]))
    report = convattn.export(changed, tmp_path / "gated.pt2", input_size=(64, 64))
    assert report.max_relative_error < 1e-4


# Refusals, which leave the model as it was


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
        (dict(mixer="se", input_size=(64, 64)), r"input_size \(64, 64\) must be \(channels, height, width\)"),
        (dict(mixer="se", input_size=224), r"input_size 224 must be \(channels, height, width\)"),
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


def test_a_module_that_does_not_run_once_is_refused():
    model, _ = build("plain")
    with pytest.raises(ValueError, match=r"relu runs 3 times in a forward pass; choose a module that runs once"):
        convattn.attach(model, "se", where=["relu"])
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match=r"unused does not run by itself in a forward pass; known: "):
        convattn.attach(model, "se", where=["unused"])


@pytest.mark.parametrize("build_dense", [torchvision.models.densenet121, lambda: timm.create_model("densenet121")])
def test_a_container_that_runs_all_it_holds_is_refused(build_dense):
    with torch.device("meta"):
        model = build_dense()
    with pytest.raises(ValueError, match=r"features.denseblock1 runs whatever is registered in it, so no block can be"):
        convattn.attach(model, "se", where=["features.denseblock1"])
    changed = convattn.attach(model, "das", where=["features.transition1.norm"])
    assert changed(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)
    places = [entry["place"] for entry in convattn.attach(model, "se").surgery]  # the stages end in their transitions
    assert places == [*(f"features.transition{index}" for index in (1, 2, 3)), "features.norm5"]


def test_pools_at_the_end_are_no_stages():
    model = torchvision.models.vgg11_bn(num_classes=2, init_weights=False)
    places = [entry["place"] for entry in convattn.attach(model, "se").surgery]
    assert places == ["features.2", "features.6", "features.13", "features.20", "features.27"]


def test_a_compiled_model_is_refused():
    model = torch.compile(resnet()[0])
    for operation in (lambda m: convattn.attach(m, "se"), lambda m: convattn.replace(m, "cot"), convattn.detach):
        with pytest.raises(TypeError, match=r"model is a compiled \w+; give the model itself, and compile the result"):
            operation(model)


def test_a_model_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"the output of blocks.0 has shape \(1, \d+, 64\), not that of a map"):
        convattn.attach(timm.create_model("test_vit"), "se")


@pytest.mark.parametrize(
    "operation",
    [lambda model: convattn.attach(model, "se"), lambda model: convattn.replace(model, "cot"), convattn.detach],
)
def test_a_name_instead_of_a_model_is_refused(operation):
    with pytest.raises(TypeError, match=r"model is a str, not a torch.nn.Module; build one with create_model"):
        operation("resnet18")


def test_official_files_and_attached_models(tmp_path):
    model = build_toy("smt_nano")
    file, part, other = (tmp_path / f"{name}.pth" for name in ("smt", "part", "cot"))
    torch.save({"model": convattn.to_official(model)}, file)
    part.write_bytes(file.read_bytes()[:5000])
    torch.save({"state_dict": convattn.to_official(build_toy("cotnet_nano"))}, other)
    changed = convattn.attach(build_toy("smt_nano"), "se")
    before = copy.deepcopy(changed.state_dict())
    for path, message in (
        (part, r"part.pth: damaged or cut short"),
        (other, r"cot.pth: not a checkpoint of smt_nano \(7 classes\): its entries are conv1.weight"),
        (file, r"smt.pth: does not fit .*: stages.0.attached.*is missing in the file.*; load what fits with strict"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            convattn.load_official(changed, path)
        assert "\n" not in str(error.value)
        assert all(torch.equal(value, before[key]) for key, value in changed.state_dict().items())
    with pytest.warns(UserWarning, match=r"left out of smt_nano \(7 classes\): stages.0.attached") as warned:
        convattn.load_official(changed, file, strict=False)
    assert len(warned) == 1
    images = toy_images("smt_nano")
    with torch.no_grad():
        assert relative_error(changed(images), model(images)) < 1e-6


def test_a_model_without_stages_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(ValueError, match=r"Sequential has no stages that can be found; name the modules in where"):
        convattn.attach(model, "se", input_size=(3, 32, 32))


# Ties, and what others have hung on modules


class TwoNames(nn.Module):
    """A convolution, a stage and a block under two names each; the block runs twice."""

    def __init__(self):
        super().__init__()
        self.stem = self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(self.block, nn.Conv2d(16, 16, 1), self.block)
        self.stage = self.last = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1))

    def forward(self, x):
        return self.last(self.body(self.first(x)))


@pytest.mark.parametrize(
    "where", [["first"], ["last"], ["body"], lambda name, _: name == "last.0"], ids=["first", "last", "body", "chosen"]
)
def test_a_place_may_be_called_by_any_of_its_names(where):
    model, images = TwoNames().eval(), torch.randn(2, 3, 9, 9)
    randomise_norms(model)
    gated = convattn.attach(model, "se", where=where)
    assert [entry["place"] for entry in gated.surgery] in (["stem"], ["stage"], ["body"], ["stage.0"])
    assert gated.stage is gated.last and gated.stem is gated.first
    with torch.no_grad():
        assert relative_error(gated(images), model(images)) < 1e-6
        assert relative_error(shaken(gated)(images), model(images)) > 1e-3
        assert torch.equal(convattn.detach(gated)(images), model(images))


def test_a_block_that_runs_in_two_places_is_refused_by_its_first_name():
    with pytest.raises(ValueError, match=r"block\.2 runs 2 times in a forward pass; choose a module that runs once"):
        convattn.attach(TwoNames(), "se", where=["body.2.2"])


def test_who_listens_to_the_place_already_gets_the_new_map_and_may_change_it():
    model, images = resnet()
    heard = []
    model.layer2.get_submodule("0").register_forward_hook(lambda _m, _args, output: heard.append(output))
    model.layer2.get_submodule("0").register_forward_hook(lambda _m, _args, output: 2 * output)
    changed = convattn.attach(model, "se", where=["layer2.0"], init="paper")
    assert heard == []  # nobody was shown the maps of the search
    place = changed.layer2.get_submodule("0")
    inside = []
    place.attached.mixer.register_forward_hook(lambda _m, _args, output: inside.append(output))
    behind = []
    changed.layer3.register_forward_pre_hook(lambda _m, args: behind.append(args[0]))
    with torch.no_grad():
        changed(images)
    assert torch.equal(heard[0], inside[0])
    assert torch.equal(behind[0], 2 * inside[0])


def test_a_model_that_has_run_with_gradients_is_taken():
    model = timm.create_model("levit_128s", num_classes=2, depth=(1, 1, 1)).eval()
    images = torch.randn(1, 3, 224, 224)
    want = model(images).detach()  # its attentions keep their bias now
    assert relative_error(convattn.attach(model, "se", where=["stem"])(images), want) < 1e-6


class Concatenating(nn.Sequential):
    """A stage that puts behind one another what each of its layers gives."""

    def __init__(self):
        super().__init__(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1))

    def forward(self, x):
        for layer in self:
            x = torch.cat([x, layer(x)], 1)
        return x


class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        for layer in self.children():
            x = x + layer(x)
        return x


class InTurn(Summing):
    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


def staged(stage, width):
    down = [nn.Sequential(nn.Conv2d(width, 8, 1), nn.Conv2d(8, 8, 2, stride=2)) for _ in range(2)]
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 2, stride=2))
    return nn.Sequential(stem, stage(), down[0], stage(), down[1]).eval()


@pytest.mark.parametrize(("stage", "width"), [(Concatenating, 24), (Summing, 8)])
def test_a_block_goes_behind_what_follows_a_stage_that_runs_all_it_holds(stage, width):
    model, images = staged(stage, width), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"^1 runs whatever is registered in it, so no block can be"):
        convattn.attach(model, "se", where=["1"])
    gated = convattn.attach(model, "se", where="stages")
    assert not {"1", "3"} & {entry["place"] for entry in gated.surgery} and len(gated.surgery) >= 2
    with torch.no_grad():
        assert relative_error(gated(images), model(images)) < 1e-6


def test_a_stage_that_hands_a_value_from_child_to_child_takes_a_block():
    model, images = staged(InTurn, 8), torch.randn(2, 3, 32, 32)
    gated = convattn.attach(model, "se", where=["1", "3"])
    with torch.no_grad():
        assert relative_error(gated(images), model(images)) < 1e-6
        assert relative_error(shaken(gated)(images), model(images)) > 1e-3
