"""Blocks on the queries, keys and values inside timm's attentions: the aggregators of GroupMixFormer around them."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.model_files import load_model, save_model
from convattn.surgery.attachment import Attachment
from convattn.surgery.attentions import project_maps, project_tokens
from networks import build
from toys import randomise_norms, relative_error


def pvt(**options):
    return timm.create_model("pvt_v2_b0", depths=(1, 1, 2, 1), num_classes=5, **options), torch.randn(2, 3, 64, 96)


def swin(**options):
    """Grids of 9 × 11, 5 × 6, 3 × 3 and 2 × 2 positions: windows of 4 and 3 that need filling, shifted by turns."""
    small = dict(embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 2, 2), num_classes=5, img_size=(36, 44))
    model = timm.create_model("swin_tiny_patch4_window7_224", **{**small, "window_size": 4, **options})
    return model, torch.randn(2, 3, 36, 44)


FORMS = {
    "pvt": lambda: pvt(),
    "pvt without biases": lambda: pvt(qkv_bias=False),
    "pvt with linear attention": lambda: pvt(linear=True),
    "swin": lambda: swin(),
    "swin without biases": lambda: swin(qkv_bias=False),
    "swin with oblong windows": lambda: swin(window_size=((4, 4), (3, 4), (3, 3), (1, 2))),
    "swin with heads of their own width": lambda: swin(head_dim=12),
    "swin of any size": lambda: swin(strict_img_size=False, always_partition=True),
}
NEW_KEYS = ".attached."
both = pytest.mark.parametrize("name", ["pvt", "swin"])


def network(name):
    model, images = FORMS[name]()
    randomise_norms(model)
    return model.eval(), images


def shaken(model):
    model = copy.deepcopy(model)
    for key, parameter in model.named_parameters():
        if NEW_KEYS in key:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", FORMS)
def test_attention_that_projects_maps_gives_timms_values(name):
    model, images = network(name)
    model, images = model.double(), images.double()
    form = copy.deepcopy(model)
    project_maps(form)
    changed = [module for module in form.modules() if type(module).__module__.startswith("convattn.")]
    assert len(changed) == (5 if name.startswith("pvt") else 6)
    with torch.no_grad():
        want = model(images)
        assert relative_error(form(images), want) < 1e-12
        for module in changed:
            project_tokens(module)
        assert torch.equal(form(images), want)


def test_another_size_of_image():
    model, _ = network("swin of any size")
    model, images = model.double(), torch.randn(2, 3, 72, 52, dtype=torch.float64)
    changed = convattn.attach(model, "group_aggregator", where="qkv")
    with torch.no_grad():
        want = model(images)
        assert relative_error(changed(images), want) < 1e-12
        assert relative_error(shaken(changed)(images), want) > 1e-6


@both
def test_starts_as_it_was_comes_to_life_and_comes_back(name):
    model, images = network(name)
    before = copy.deepcopy(model.state_dict())
    changed = convattn.attach(model, "group_aggregator", where="qkv")
    fitted = changed.load_state_dict(before, strict=False)
    new = {key for key in changed.state_dict() if NEW_KEYS in key}
    # (To torch a batch norm's counter is never missing from a file that knows nothing of the batch norm.)
    assert set(fitted.missing_keys) == {key for key in new if not key.endswith("num_batches_tracked")} != set()
    assert fitted.unexpected_keys == []
    with torch.no_grad():
        want = model(images)
        assert relative_error(changed(images), want) < 1e-6
        assert relative_error(shaken(changed)(images), want) > 1e-4
        assert torch.equal(convattn.detach(shaken(changed))(images), want)
    restored = convattn.detach(changed)
    assert [type(module) for module in restored.modules()] == [type(module) for module in model.modules()]
    assert list(restored.state_dict()) == list(before)

    changed.train()
    optimizer = torch.optim.SGD(changed.parameters(), lr=0.1)
    alive = set()
    for _ in range(2):
        optimizer.zero_grad()
        (changed(images) * torch.randn(5)).square().sum().backward()
        alive = {key for key, p in changed.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert {key for key, _ in changed.named_parameters()} <= alive


def test_the_table_names_the_projections():
    model, _ = network("pvt")
    table = convattn.attach(model, "group_aggregator", where="qkv").surgery
    assert [(e["place"], e["channels"], e["layout"]) for e in table[:3]] == [
        ("stages.0.blocks.0.attn.q", 32, "NHWC"),
        ("stages.0.blocks.0.attn.kv", 32, "NHWC"),
        ("stages.1.blocks.0.attn.q", 64, "NHWC"),
    ]
    assert len(table) == 10
    model, _ = network("swin with heads of their own width")
    table = convattn.attach(model, "group_aggregator", where="qkv").surgery
    assert [(e["place"], e["channels"]) for e in table[:3]] == [
        ("layers.0.blocks.0.attn.qkv", 12),
        ("layers.0.blocks.1.attn.qkv", 12),
        ("layers.1.blocks.0.attn.qkv", 24),
    ]


@pytest.mark.parametrize(
    ("name", "place", "count", "grid"),
    [
        ("pvt", "stages.0.blocks.0.attn.q", 1, (16, 24)),
        ("pvt", "stages.0.blocks.0.attn.kv", 2, (2, 3)),
        ("pvt with linear attention", "stages.0.blocks.0.attn.kv", 2, (7, 7)),
        ("swin", "layers.0.blocks.1.attn.qkv", 3, (9, 11)),
    ],
)
def test_projected_maps_pass_through_the_aggregators(name, place, count, grid):
    model, images = network(name)
    changed = convattn.attach(model, "group_aggregator", where=[place], init="paper")
    randomise_norms(changed)
    changed.eval()
    projection, seen = changed.get_submodule(place), []
    projection.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        changed(images)
        ((x, got),) = seen
        assert got.shape[1:3] == grid
        assert len(projection.attached.mixer.branches) == 4
        plain = nn.functional.linear(x, projection.weight, projection.bias)
        want = [projection.attached.mixer(part.permute(0, 3, 1, 2)) for part in plain.chunk(count, -1)]
        assert relative_error(got, torch.cat(want, 1).permute(0, 2, 3, 1)) < 1e-6


def test_groups_cross_the_borders_of_windows_but_not_the_seam_of_a_shift():
    model, _ = network("swin")
    changed = convattn.attach(model, "group_aggregator", where="qkv", init="paper").double()
    block = changed.layers[0].blocks[1]
    assert block.shift_size == (2, 2) and block.window_size == (4, 4)
    x = torch.randn(1, 9, 11, 16, dtype=torch.float64, requires_grad=True)
    seen = []
    block.attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    block(x)
    # The corner of the map: in a shifted window it sits beside the opposite corner, here beside its own neighbours.
    (gradient,) = torch.autograd.grad(seen[0][0, 0, 0].square().sum(), x)
    reached = gradient[0].abs().sum(-1).nonzero()
    assert reached.max().item() == 3
    assert len(reached) == 16


def test_batch_norms_see_queries_keys_and_values_together():
    model, images = network("swin")
    changed = convattn.attach(model, "group_aggregator", where=["layers.0.blocks.0.attn.qkv"], init="paper").train()
    projection, seen = changed.layers[0].blocks[0].attn.qkv, []
    projection.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    changed(images)
    with torch.no_grad():
        plain = nn.functional.linear(seen[0], projection.weight, projection.bias)
        segment = torch.cat([part[..., :4] for part in plain.chunk(3, -1)])
        norm = projection.attached.mixer.branches[0].norm
        assert norm.num_batches_tracked == 1
        assert relative_error(norm.running_mean, 0.1 * segment.mean((0, 1, 2))) < 1e-5
        assert relative_error(norm.running_var, 0.9 + 0.1 * segment.flatten(0, 2).var(0)) < 1e-5


def test_some_projections_only_and_other_mixers():
    model, images = network("pvt")
    changed = convattn.attach(model, "se", where=lambda name, module: name.endswith("blocks.0.attn.kv"))
    assert [entry["place"] for entry in changed.surgery] == [f"stages.{i}.blocks.0.attn.kv" for i in range(4)]
    more = convattn.attach(changed, "group_aggregator", where=["stages.1.blocks.0.attn.q"])
    with torch.no_grad():
        want = model(images)
        assert relative_error(more(images), want) < 1e-6
        assert relative_error(shaken(more)(images), want) > 1e-5
        assert torch.equal(convattn.detach(shaken(more))(images), want)
    assert sum(isinstance(module, Attachment) for module in more.modules()) == 5


@both
def test_blocks_and_stages_are_found_as_before(name):
    model, _ = network(name)
    first = "stages.2.blocks.0.attn.q" if name == "pvt" else "layers.0.blocks.0.attn.qkv"
    changed = convattn.attach(model, "group_aggregator", where=[first])
    for where in ("stages", "blocks"):
        want = [entry["place"] for entry in convattn.attach(model, "eca", where=where).surgery]
        assert [entry["place"] for entry in convattn.attach(changed, "eca", where=where).surgery[1:]] == want


# What users do with models


@both
def test_copies_pickles_and_state_dicts(name):
    model, images = network(name)
    changed = shaken(convattn.attach(model, "group_aggregator", where="qkv"))
    other = shaken(convattn.attach(model, "group_aggregator", where="qkv"))
    with torch.no_grad():
        want = changed(images)
        assert torch.equal(copy.deepcopy(changed)(images), want)
        assert torch.equal(pickle.loads(pickle.dumps(changed))(images), want)
        assert not torch.equal(other(images), want)
        other.load_state_dict(changed.state_dict())
        assert torch.equal(other(images), want)


@pytest.mark.parametrize("name", ["timm:pvt_v2_b0", "timm:swin_tiny_patch4_window7_224"])
def test_saved_and_loaded(name, tmp_path):
    options = dict(depths=(1, 1, 1, 1), num_classes=3)
    options |= dict(img_size=56, embed_dim=32, num_heads=(1, 1, 2, 2)) if "swin" in name else {}
    changed = shaken(convattn.attach(convattn.create_model(name, **options), "group_aggregator", where="qkv"))
    save_model(changed, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.surgery == changed.surgery
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(loaded(images), changed(images))


@pytest.mark.parametrize(
    "name", ["pvt", pytest.param("swin", marks=pytest.mark.slow)]
)  # one is exported like the other
def test_compiles_as_one_graph_and_exports(name):
    model, images = network(name)
    changed = shaken(convattn.attach(model, "group_aggregator", where="qkv"))
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        compiled = torch.compile(changed, fullgraph=True, backend="eager")
        assert relative_error(compiled(images), changed(images)) < 1e-6
        program = torch.export.export(changed, (images,), dynamic_shapes=({0: batch},)).module()
        more = torch.randn(3, *images.shape[1:])
        assert relative_error(program(more), changed(more)) < 1e-5


@pytest.mark.slow
def test_pvt_exports_for_any_size():
    model, images = network("pvt")
    changed = shaken(convattn.attach(model, "group_aggregator", where="qkv"))
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        program = torch.export.export(changed, (images,), dynamic_shapes=(sides,)).module()
        other = torch.randn(2, 3, 96, 64)
        assert relative_error(program(other), changed(other)) < 1e-5


@both
def test_fused_prepacked_and_counted(name):
    model, images = network(name)
    changed = shaken(convattn.attach(model, "group_aggregator", where="qkv"))
    with torch.no_grad():
        want = changed(images)
        fused = convattn.fuse(changed)
        assert [part for part in fused.fusion_report if part.name.endswith("attached.mixer")]
        assert relative_error(fused(images), want) < 1e-5
        assert relative_error(convattn.prepack(changed, images)(images), want) < 1e-5
    plain, counted = (convattn.count(m, tuple(images.shape[1:])) for m in (model, changed))
    assert counted.parameters - plain.parameters == sum(entry["parameters"] for entry in changed.surgery)
    assert counted.macs > plain.macs


@both
def test_gradient_checkpointing(name):
    model, images = network(name)
    changed = shaken(convattn.attach(model, "group_aggregator", where="qkv")).double()
    images = images.double().requires_grad_()
    want = changed(images)
    (want_gradient,) = torch.autograd.grad(want.square().sum(), images)
    changed.set_grad_checkpointing()
    got = changed(images)
    (gradient,) = torch.autograd.grad(got.square().sum(), images)
    assert relative_error(got, want) < 1e-9
    assert relative_error(gradient, want_gradient) < 1e-9


# Refusals


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "timm resnet",
            dict(where="qkv"),
            r"ResNet has no qkv that can be found; known are the attentions of timm's PVTv2 and Swin",
        ),
        ("torchvision swin", dict(where="qkv"), r"SwinTransformer has no qkv that can be found; known are"),
        ("timm swin", dict(where=["layers.0.blocks.0.attn.kv"]), r"has no module 'layers.0.blocks.0.attn.kv'; nearest"),
        (
            "timm swin",
            dict(where=["layers.0.blocks.0.attn.qkv"] * 2),
            r"layers.0.blocks.0.attn.qkv has a block attached already",
        ),
        (
            "timm pvt",
            dict(where=["stages.0.blocks.0.attn.proj"]),
            r"the output of stages.0.blocks.0.attn.proj has shape \(1, \d+, 32\), not that of a map",
        ),
        ("timm pvt", dict(mixer="gma", where="qkv"), r"gma at stages.0.blocks.0.attn.q \(32 channels\): dim 32 does"),
    ],
)
def test_refusals(name, arguments, message):
    model, _ = build(name)
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message) as error:
        convattn.attach(model, **{"mixer": "group_aggregator", **arguments})
    assert "\n" not in str(error.value)
    assert [type(module) for module in model.modules()] == before
    assert not any(NEW_KEYS in key for key in model.state_dict())
