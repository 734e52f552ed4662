"""DAS: what the contract suite does not cover."""

import copy

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.export import Dim

import convattn
from convattn.backbones.das_mobilenet import GATED_GROUPS
from convattn.mixers.deformable_gate import ABLATIONS, DeformableGate
from golden_file import float32_errors, smooth
from toys import build_toy, randomise_norms, relative_error, shallow_toy

BASES = {
    "resnet18_das": "resnet18",
    "resnet34_das": "resnet34",
    "resnet50_das": "resnet50",
    "resnet101_das": "resnet101",
    "mobilenetv2_das": "mobilenetv2_100",
}


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def gates(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, DeformableGate)}


def on_meta(name, **options):
    with torch.device("meta"):
        return convattn.create_model(name, **options)


# The plain network inside


@pytest.mark.parametrize("name", BASES)
def test_the_plain_networks_weights_keep_their_names(name):
    with torch.device("meta"):
        base = timm.create_model(BASES[name]).state_dict()
    model = on_meta(name)
    ours = model.state_dict()
    added = ours.keys() - base.keys()
    assert base.keys() <= ours.keys()
    assert all(ours[key].shape == base[key].shape for key in base)
    assert {key for key in added if not key.startswith(tuple(f"{gate}." for gate in gates(model)))} == set()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18_das",
        "mobilenetv2_das",
        *(pytest.param(f"resnet{n}_das", marks=pytest.mark.slow) for n in (34, 50, 101)),
    ],
)
def test_float32_is_exact_where_no_kink_decides(name):
    model = convattn.create_model(name).eval()
    randomise_norms(model)
    errors = float32_errors(smooth(model), torch.randn(1, 3, 96, 112))
    assert errors["logits"] < 1e-5
    # Measured: 9e-6 through 50 layers, 2.5e-5 through 101, whose residual branches these norms leave at full size.
    assert errors["grad"] < (1e-4 if name == "resnet101_das" else 2e-5)


@pytest.mark.parametrize("name", ["resnet18_das", "mobilenetv2_das"])
@pytest.mark.parametrize("sampling", ["auto", "grid_sample"])
def test_identity_gates_leave_the_trained_network_as_it_is(name, sampling):
    base = timm.create_model(BASES[name]).eval()
    randomise_norms(base)
    model = convattn.create_model(name, init="identity", sampling=sampling).eval()
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    assert unexpected == []
    assert {key for key in missing if not key.startswith(tuple(f"{gate}." for gate in gates(model)))} == set()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model(images), base(images)) < 1e-5
        double = relative_error(model.double()(images.double()), base.double()(images.double()))
    assert double < 1e-12


@pytest.mark.parametrize(("name", "stem"), [("resnet18_das", 64), ("resnet50_das", 256)])
def test_gates_multiply_the_outputs_of_the_stages(name, stem):
    model = convattn.create_model(name, depths=(1, 1, 1, 1)).eval()
    assert list(gates(model)) == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    seen = {}
    model.layer1[0].register_forward_hook(lambda _m, _i, out: seen.update(map=out))
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
        assert seen["map"].shape[1] == stem
        assert torch.equal(levels[1], model.layer1[1](seen["map"]))


# Counts


@pytest.mark.parametrize(
    ("gated_groups", "parameters", "channels"),
    [
        ("seven", 3_832_193, [16, 24, 32, 64, 96, 160, 320]),
        ("strides", 3_758_691, [24, 32, 96, 320]),
        ("early_strides", None, [16, 24, 32, 96]),
        ("all_strides", None, [16, 24, 32, 96, 320]),
        ((7,), None, [320]),
        ((), 3_504_872, []),
    ],
)
def test_mobilenet_gates_the_groups_asked_for(gated_groups, parameters, channels):
    model = on_meta("mobilenetv2_das", gated_groups=gated_groups)
    assert [gate.norm2.normalized_shape[0] for gate in gates(model).values()] == channels
    assert parameters is None or num_parameters(model) == parameters
    assert num_parameters(model) == 3_504_872 + sum(num_parameters(gate) for gate in gates(model).values())


def test_presets_that_print_the_published_multiply_adds():
    macs = {preset: convattn.count(on_meta("mobilenetv2_das", gated_groups=preset)).macs for preset in GATED_GROUPS}
    assert macs["seven"] == max(macs.values()) and macs["strides"] == min(macs.values())


def test_the_cheap_form_has_the_size_the_paper_advertises():
    model = on_meta("resnet50_das", mixer="deform_dw")
    assert num_parameters(model) == 28_016_028
    assert convattn.count(model).macs / 1e9 == pytest.approx(4.506, abs=6e-4)


def test_gate_options_reach_every_gate():
    options = dict(alpha=0.5, kernel_size=5, modulated=False, norm1="gn1", norm2="bn", sampling="grid_sample")
    model = convattn.create_model("resnet18_das", dims=(8, 16, 16, 24), depths=(1, 1, 1, 1), **options)
    for gate, dim in zip(gates(model).values(), (8, 16, 16, 24), strict=True):
        assert gate.compress.pointwise.out_channels == dim // 2
        assert gate.mixer.weight.shape == (dim, dim // 2, 5, 5)
        assert gate.mixer.offset.out_channels == 50 and gate.mixer.sampling == "grid_sample"
        assert isinstance(gate.compress.norm, nn.GroupNorm) and isinstance(gate.norm2, nn.BatchNorm2d)


FORMS = {  # what a gate of C channels and h in between has, by the layers of its form
    "a": lambda c, h: (18 * c + 2) + (2 * c * c + c),
    "b": lambda c, h: (9 * c + c * h) + (18 * h + 2) + (2 * h * c + c),
    "c": lambda c, h: (9 * c + c * h) + (243 * h + 27) + 9 * h * c + 2 * c,
    "d": lambda c, h: (243 * c + 27) + 9 * c * c + 2 * c,
    "e": lambda c, h: (9 * c + c * c) + 2 * c,
    "f": lambda c, h: (9 * c + c * h) + (9 * h + h * c) + 2 * c,
    "g": lambda c, h: (243 * c + 27) + 9 * c * c,
    "h": lambda c, h: (9 * c + c * h) + (243 * h + 27) + 9 * h * c + 2 * c,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_ablation_stands_behind_each_stage(form):
    options = dict(block="basic", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=7)
    model = convattn.create_model("resnet18_das", form=form, **options).eval()
    plain = convattn.create_model("resnet18_das", gated_stages=(), **options)
    added = sum(FORMS[form](dim, int(0.2 * dim)) for dim in (8, 16, 24, 32))
    assert convattn.count(model).parameters == convattn.count(plain).parameters + added
    x = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        if form not in "agh":  # a gate: it leaves zeros and signs as they are, and shrinks
            block, stage = model.layer1[0](torch.ones(1, 64, 5, 7)), model.layer1(torch.ones(1, 64, 5, 7))
            assert (stage.abs() <= block.abs()).all() and (stage.abs() < block.abs()).any()
        assert relative_error(convattn.fuse(model)(x), model(x)) < 1e-5


@pytest.mark.parametrize("form", sorted(ABLATIONS))
def test_a_form_is_the_options_it_stands_for(form):
    named, spelled = build_toy("mobilenetv2_das", form=form), build_toy("mobilenetv2_das", **ABLATIONS[form]).eval()
    spelled.load_state_dict(named.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(named.eval()(x), spelled(x))


# Placement


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (dict(), ["layer1.1", "layer2.2", "layer3.1", "layer4.1"]),
        (dict(gated_stages=(2, 4)), ["layer2.2", "layer4.1"]),
        (dict(pre_act=True), [f"layer{n}.act2.0" for n in ("1.0", "2.1", "3.0", "4.0")]),
        (dict(where="blocks"), [f"layer{n}.act2.1" for n in ("1.0", "2.0", "2.1", "3.0", "4.0")]),
        (dict(where="blocks", pre_act=True, gated_stages=(2,)), ["layer2.0.act2.0", "layer2.1.act2.0"]),
        (dict(gated_stages=()), []),
    ],
)
def test_placement(options, names):
    plain = convattn.create_model("resnet18_das", gated_stages=(), depths=(1, 2, 1, 1))
    model = convattn.create_model("resnet18_das", depths=(1, 2, 1, 1), **options)
    assert list(gates(model)) == names
    assert plain.state_dict().keys() <= model.state_dict().keys()  # wherever the gates are


def test_before_the_activation_means_between_addition_and_relu():
    model = build_toy("resnet18_das", pre_act=True)
    block = model.layer1[-1]
    gate, relu = block.act2
    seen = {}
    gate.register_forward_hook(lambda _m, inputs, out: seen.update(sum=inputs[0].clone(), gated=out.clone()))
    with torch.no_grad():
        out = block(torch.randn(1, 64 if block.downsample else 8, 6, 6))
    assert (seen["sum"] < 0).any() and (out >= 0).all()
    assert torch.equal(out, relu(seen["gated"]))


def test_before_or_after_the_activation_differs_only_in_place():
    after, before = build_toy("resnet50_das"), build_toy("resnet50_das", pre_act=True)
    assert num_parameters(after) == num_parameters(before)
    assert isinstance(before.layer1[-1], Bottleneck) and isinstance(before.layer1[-1].act3[0], DeformableGate)


# Small images


@pytest.mark.parametrize("name", ["resnet18_das_cifar", "resnet50_das_cifar"])
def test_the_cifar_stem_keeps_the_size(name):
    model = build_toy(name)
    assert model.conv1.kernel_size == (3, 3) and model.conv1.stride == (1, 1)
    assert [info["reduction"] for info in model.feature_info] == [1, 2, 4, 8]
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in levels] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)


def test_pruning_keeps_the_width_of_the_last_level_left():
    for name, level in (("resnet18_das_cifar", 1), ("resnet18_das", 2), ("mobilenetv2_das", 1)):
        model = build_toy(name)
        model.prune_intermediate_layers([level])
        assert model.num_features == model.feature_info[level]["num_chs"]
        model.reset_classifier(3, "avg")
        with torch.no_grad():
            assert model.forward_head(model.forward_intermediates(torch.randn(1, 3, 40, 40))[0]).shape == (1, 3)


def test_a_map_of_one_position_is_gated_too():
    model = build_toy("resnet18_das")  # 32 pixels end as 1 x 1 behind this stem
    with torch.no_grad():
        *_, last = model.forward_intermediates(torch.randn(2, 3, 32, 32), intermediates_only=True)
    assert last.shape[2:] == (1, 1) and last.isfinite().all()


def test_a_detection_image_runs():
    model = convattn.create_model("mobilenetv2_das", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    with torch.no_grad():
        levels = model(torch.randn(1, 3, 400, 667))
    assert [tuple(level.shape[2:]) for level in levels] == [(100, 167), (50, 84), (25, 42), (13, 21)]


# Running elsewhere


@pytest.mark.parametrize("sampling", ["auto", "grid_sample", "torchvision"])
def test_exports_with_dynamic_sizes_however_it_samples(sampling):
    model = DeformableGate(8, alpha=0.5, sampling=sampling).double().eval()
    dynamic = {"x": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}
    exported = torch.export.export(model, (torch.randn(2, 8, 9, 7).double(),), dynamic_shapes=dynamic).module()
    for shape in ((2, 8, 9, 7), (1, 8, 4, 11)):
        x = torch.randn(shape, dtype=torch.float64)
        assert relative_error(exported(x), model(x)) < 1e-12


def test_a_resnet_compiles_as_one_graph_and_exports():
    torch._dynamo.reset()
    model, images = shallow_toy("resnet50_das_cifar").double(), torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        want = model(images)
        assert relative_error(torch.compile(model, fullgraph=True, backend="eager")(images), want) < 1e-12
        assert relative_error(torch.export.export(model, (images,)).module()(images), want) < 1e-12


@pytest.mark.parametrize("name", ["resnet18_das", pytest.param("mobilenetv2_das", marks=pytest.mark.slow)])
def test_onnx_runtime_runs_the_inference_form(name, tmp_path):
    model = shallow_toy(name)
    for gate in gates(model).values():
        nn.init.normal_(gate.mixer.offset.weight, std=0.2)
    report = convattn.export(model, tmp_path / "das.onnx", input_size=(64, 64))
    assert report.max_relative_error < 1e-4
    import onnx

    operators = {node.op_type for node in onnx.load(tmp_path / "das.onnx").graph.node}
    assert "GridSample" in operators and "DeformConv" not in operators


def test_fusing_folds_every_batch_norm_and_reports_it():
    model = build_toy("resnet18_das")
    for gate in gates(model).values():
        nn.init.normal_(gate.mixer.offset.weight, std=0.2)
    fused = convattn.fuse(model)
    kinds = [part.kind for part in fused.fusion_report]
    assert kinds.count("DeformableGate") == 4
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert kinds.count("Conv2d") == len(norms)
    with torch.no_grad():
        images = torch.randn(1, 3, 61, 45)
        assert relative_error(fused(images), model(images)) < 1e-4
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == len(norms)


def test_fusing_a_pruned_feature_extractor():
    for name in ("resnet50_das", "mobilenetv2_das"):
        model = build_toy(name, features_only=True, out_indices=(1, 2)).double()
        images = torch.randn(1, 3, 64, 48).double()
        with torch.no_grad():
            for got, want in zip(convattn.fuse(model)(images), model(images), strict=True):
                assert relative_error(got, want) < 1e-9


def test_two_steps_of_training_move_every_gate():
    model = build_toy("resnet18_das", init="identity").train()
    before = copy.deepcopy(gates(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    for name, gate in gates(model).items():
        for (key, new), old in zip(gate.named_parameters(), before[name].parameters(), strict=True):
            assert not torch.equal(new, old), f"{name}.{key}"


# Errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18_das", dict(where="block"), "where 'block' is unknown; choose one of stages, blocks"),
        ("resnet18_das", dict(stem="small"), "stem 'small' is unknown; choose one of imagenet, cifar"),
        ("resnet18_das", dict(block="wide"), "block 'wide' is unknown; choose one of basic, bottleneck"),
        ("resnet18_das", dict(gated_stages=(0, 5)), r"gated_stages \(0, 5\) must be some of 1, 2, 3, 4"),
        ("resnet18_das", dict(depths=(1, 2, 0, 1)), "need 4 entries, depths of 1 or more"),
        ("resnet18_das", dict(alpha=0.0), "alpha 0.0 must be above 0"),
        ("resnet18_das", dict(alphas=0.1), "unknown option 'alphas' of resnet18_das; nearest: alpha"),
        ("mobilenetv2_das", dict(gated_groups="four"), "gated_groups 'four' is unknown; choose one of seven, strides"),
        ("mobilenetv2_das", dict(gated_groups=(8,)), r"gated_groups \(8,\) must be some of 1 to 7"),
        ("mobilenetv2_das", dict(depths=(1, 2)), r"depths \(1, 2\) need 7 entries"),
        ("mobilenetv2_das", dict(channel_multiplier=0), "channel_multiplier 0 must be above 0"),
        ("mobilenetv2_das", dict(where="blocks"), "unknown option 'where' of mobilenetv2_das"),
        (
            "resnet18_das",
            dict(sampling="bilinear"),
            "sampling 'bilinear' is unknown; choose one of auto, rows, torchvi",
        ),
        ("resnet18_das", dict(form="i"), "form 'i' is unknown; choose one of a, b, c, d, e, f, g, h"),
        ("resnet18_das", dict(form="f", mixer="none"), "form 'f' sets mixer to 'dwsep'; leave out mixer 'none'"),
        ("mobilenetv2_das", dict(form="a", alpha=0.5), "unknown option 'alpha' of mixer das_a"),
        ("resnet18_das", dict(form="g", init="identity"), "init 'identity' needs the gate"),
        ("resnet50_das.in1k", {}, "resnet50_das has no published weights"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        convattn.create_model(name, **options)
    assert "\n" not in str(error.value)


def test_blocks_are_timms():
    assert isinstance(convattn.create_model("resnet18_das", depths=(1, 1, 1, 1)).layer1[0], BasicBlock)


def test_the_authors_released_no_checkpoint():
    with pytest.raises(ValueError, match="DASResNet has no official checkpoint"):
        convattn.to_official(build_toy("resnet18_das"))
