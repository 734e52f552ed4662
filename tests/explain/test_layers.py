import pytest
import timm
import torch
import torchvision

import convattn
from convattn.explain.blocks import available_methods, find_blocks
from convattn.explain.captures import captures
from convattn.explain.layers import find_layer, find_layers
from networks import NETWORKS, build
from toys import build_toy


@pytest.mark.parametrize(
    ("name", "layer", "found"),
    [
        ("smt_tiny", None, "stages.3"),
        ("smt_tiny", 16, "stages.2"),
        ("smt_tiny", "stages.1.blocks.0", "stages.1.blocks.0"),
        ("resnet18_das", 16, "layer3"),
    ],
)
def test_layers_by_stride_name_and_default(name, layer, found):
    assert find_layer(build_toy(name), layer).name == found


def test_levels_and_blocks_in_the_order_in_which_they_run():
    model = build_toy("smt_nano")
    assert [layer.name for layer in find_layers(model)] == [f"stages.{stage}" for stage in range(4)]
    blocks = [layer.name for layer in find_layers(model, "blocks")]
    assert blocks == [
        "stem",
        *(f"stages.{stage}.blocks.{at}" for stage, depth in enumerate((1, 1, 2, 1)) for at in range(depth)),
    ]
    assert [layer.name for layer in find_layers(model, [8, "stem", None])] == ["stages.2", "stem", "stages.3"]


@pytest.mark.parametrize("name", ["timm resnet", "torchvision resnet", "torchvision swin"])
def test_networks_of_others(name):
    model, images = build(name)
    layers = find_layers(model)
    with captures(model, [layer.name for layer in layers]) as kept, torch.no_grad():
        model(images)
    shapes = [layer.as_map(kept.outputs[layer.name]).shape for layer in layers]
    widths, strides = [shape[1] for shape in shapes], [64 // shape[2] for shape in shapes]
    assert widths[-4:] == [*NETWORKS[name].stages.values()]
    assert strides[-4:] == [4, 8, 16, 32]
    assert find_layer(model, 32).name == find_layer(model).name
    assert len(find_layers(model, "blocks")) == NETWORKS[name].num_blocks


def test_a_gate_behind_a_stage_is_part_of_the_layer():
    plain = torchvision.models.resnet18(num_classes=3).eval()
    gated = convattn.attach(plain, "das", where="stages", init="paper")
    layer = find_layer(gated, 32)
    kept = {}
    layer.module.register_forward_hook(lambda module, args, out: kept.update(out=out))
    gate = gated.get_submodule(f"{layer.name}.attached.mixer")
    gate.register_forward_hook(lambda module, args, out: kept.update(gate=out))
    with torch.no_grad():
        gated(torch.randn(1, 3, 64, 64))
    assert torch.equal(kept["out"], kept["gate"])


def test_layers_that_do_not_exist():
    model = build_toy("smt_nano")
    with pytest.raises(ValueError, match=r"^the model has no level of stride 32, it has 2, 4, 8, 16; nearest: 16$"):
        find_layer(model, 32)
    with pytest.raises(ValueError, match=r"^the model has no layer 'stages.2.block.1'; nearest: stages.2.blocks.1, "):
        find_layer(model, "stages.2.block.1")
    fused = convattn.fuse(model)
    lost = "stages.2.blocks.1.token_mixer.key_value"
    assert find_layer(model, lost)
    with pytest.raises(ValueError, match=r"no layer '.*key_value'; nearest: .* \(a fused model has other layers: give"):
        find_layer(fused, lost)
    with pytest.raises(ValueError, match=r"^layers 'all' is unknown; choose levels, blocks, or give a list$"):
        find_layers(model, "all")
    with pytest.raises(ValueError, match=r"^layers is an empty list"):
        find_layers(model, [])


def test_methods_by_what_a_model_has():
    general = available_methods(timm.create_model("resnet10t"))
    own = {name: available_methods(build_toy(name))[len(general) :] for name in ("smt_nano", "cotnet_50", "hybrid")}
    assert own["smt_nano"] == ["relative_receptive_field", "modulation_maps"]
    assert own["cotnet_50"] == ["contexts"]
    assert own["hybrid"] == ["modulation_maps", "contexts"]
    assert available_methods(build_toy("cotnext_50"))[-1] == "contexts"  # a class derived from CoT's


def test_blocks_that_a_model_has_not():
    with pytest.raises(
        ValueError,
        match=r"^response_maps looks into GroupMixAttention, and SMT has none; it has the tensors for grad_cam, .*, "
        r"feature_map_variance, relative_receptive_field, modulation_maps$",
    ):
        find_blocks(build_toy("smt_nano"), "response_maps")
    with pytest.raises(ValueError, match=r"^there is no ScaleAwareModulation in 'stages.3'; nearest|^there is no"):
        find_blocks(build_toy("smt_nano"), "modulation_maps", "stages.3")
    fused = convattn.fuse(build_toy("smt_nano"))
    for method in ("modulation_maps", "relative_receptive_field"):
        with pytest.raises(
            ValueError, match=rf"^this SMT is fused and has no inner tensors for {method}; give the unf"
        ):
            find_blocks(fused, method)
