"""What users do with models: with blocks attached it works as before, and the blocks take part."""

import copy
import pickle

import pytest
import timm
import torch
from timm.models import FeatureListNet
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor

import convattn
from attached import four_stages, resnet, shaken
from convattn.mixers.contextual_transformer import CoTAttention
from convattn.mixers.deformable_gate import DeformableGate
from convattn.mixers.scale_aware_modulation import ScaleAwareModulation
from networks import build
from toys import build_toy, relative_error, toy_images


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
