"""The backbone contract, what a model computes: alone and in a batch, in each precision, layout and form the same."""

import copy

import pytest
import torch
from torch import nn
from torch._prims_common import suggest_memory_format
from torch.export import Dim

import convattn
from registered import FIRST, NAMES, every_toy, one_of_each_family
from toys import build_toy, lively, relative_error, shallow_toy, toy_images


def but_for(*families):
    """One model of each family but these in the default run, the others with the slow tests."""
    first = {name for family, name in FIRST.items() if family not in families}
    return pytest.mark.parametrize(
        "name", [n if n in first else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
    )


# Forward and backward


@every_toy
def test_a_batch_equals_its_images_one_by_one(name):
    model, images = build_toy(name).double(), toy_images(name, batch=3).double()
    with torch.no_grad():
        one_by_one = torch.cat([model(image[None]) for image in images])
        assert relative_error(model(images), one_by_one) < 1e-12


@every_toy
def test_evaluation_repeats_exactly(name):
    model, images = build_toy(name, drop_rate=0.5, drop_path_rate=0.5), toy_images(name)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))


@every_toy
def test_gradients_reach_every_parameter_and_the_image(name):
    model, images = build_toy(name).train(), toy_images(name).requires_grad_()
    model(images).square().sum().backward()
    dead = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    # (A bias in front of a batch norm is taken out again by the batch's mean: its gradient is rounding, yet not all 0.)
    assert dead == []
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.any()


@every_toy
def test_gradient_checkpointing_gives_the_same_gradients_and_batch_statistics(name):
    plain = build_toy(name).double().train()
    recomputed = copy.deepcopy(plain)
    recomputed.set_grad_checkpointing()
    images = toy_images(name).double()
    saved = {}
    for label, model in (("plain", plain), ("recomputed", recomputed)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = model(images).square().sum()
        saved[label] = sum(kept)
        loss.backward()
    assert saved["recomputed"] < 0.8 * saved["plain"]
    wanted = dict(plain.named_parameters())
    for key, parameter in recomputed.named_parameters():
        assert torch.allclose(parameter.grad, wanted[key].grad, rtol=1e-9, atol=1e-12), key
    measured = dict(plain.named_buffers())
    assert all(torch.equal(buffer, measured[key]) for key, buffer in recomputed.named_buffers())


@every_toy
def test_forward_writes_no_attribute(name):
    model, images = build_toy(name).train(), toy_images(name)

    def attributes() -> dict:
        return {
            (key, attribute): id(value)
            for key, module in model.named_modules()
            for attribute, value in {**vars(module), **module._buffers, **module._parameters}.items()
        }

    before = attributes()
    model(images).sum().backward()
    assert attributes() == before


@every_toy
def test_channels_last_agrees_with_contiguous(name):
    model, images = build_toy(name).double(), toy_images(name).double()
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    contiguous_in, channels_last_in = images.clone().requires_grad_(), images.clone().requires_grad_()
    want = model(contiguous_in)
    got = channels_last(channels_last_in.to(memory_format=torch.channels_last))
    want.square().sum().backward()
    got.square().sum().backward()
    assert relative_error(got, want) < 1e-12
    assert relative_error(channels_last_in.grad, contiguous_in.grad) < 1e-11


@one_of_each_family
def test_one_image_lies_in_memory_as_several_do(name):
    # With one image its stride is of no matter to the values, but a wrong one reads as channels first, and is copied.
    model, images = build_toy(name).to(memory_format=torch.channels_last), toy_images(name)
    layouts: dict[str, list] = {}
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, args, key=key: layouts.setdefault(key, []).append(suggest_memory_format(args[0]))
            )
    with torch.no_grad():
        for batch in (images[:2], images[:1]):
            model(batch.to(memory_format=torch.channels_last))
    several, one = ({key: seen[i] for key, seen in layouts.items()} for i in (0, 1))
    assert several == one


@every_toy
def test_bfloat16_stays_close(name):
    model, images = build_toy(name), toy_images(name)
    with torch.no_grad():
        want = model(images)
        got = copy.deepcopy(model).bfloat16()(images.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(images)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, want) < 0.05  # eps is 0.0078, a dozen layers
    assert relative_error(autocast, want) < 0.05


# Compiling, exporting, fusing


@one_of_each_family
def test_compiles_as_one_graph(name):
    torch._dynamo.reset()
    model, images = shallow_toy(name).double(), toy_images(name).double()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert relative_error(compiled(images), model(images)) < 1e-12


@pytest.mark.slow
@every_toy
def test_compiles_by_inductor(name):
    torch._dynamo.reset()
    model, images = build_toy(name), toy_images(name)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(images), model(images)) < 1e-4


@but_for("hybrid", "das_mobilenet")  # whose mixers and gate are in other families' exports
def test_exports_with_dynamic_batch_height_and_width(name):
    model = shallow_toy(name).double()
    example = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    dynamic = {"x": {0: Dim("batch"), 2: Dim.AUTO, 3: Dim.AUTO}}
    exported = torch.export.export(model, (example,), dynamic_shapes=dynamic).module()
    with torch.no_grad():
        for shape in ((2, 3, 64, 96), (1, 3, 65, 71), (3, 3, 96, 40)):
            images = torch.randn(shape, dtype=torch.float64)
            assert relative_error(exported(images), model(images)) < 1e-12


@but_for("hybrid", "das_mobilenet", "das", "next_vit")  # test_das.py and test_next_vit_options.py write ONNX too
def test_onnx_runtime_gives_the_same_numbers(name, tmp_path):
    report = convattn.export(shallow_toy(name), tmp_path / "model.onnx", input_size=(65, 71), dynamic="batch")
    print(f"\n| {name} | ONNX Runtime | {report.max_relative_error:.1e} |", flush=True)
    assert report.max_relative_error < 1e-4


@every_toy
def test_fused_form_agrees_and_leaves_the_original_alone(name):
    model, images = lively(build_toy(name)).double(), toy_images(name).double()
    before = copy.deepcopy(model.state_dict())
    fused = convattn.fuse(model)
    with torch.no_grad():
        assert relative_error(fused(images), model(images)) < 1e-9
        levels = model.forward_intermediates(images, intermediates_only=True)
        fused_levels = fused.forward_intermediates(images, intermediates_only=True)
    assert all(relative_error(a, b) < 1e-9 for a, b in zip(fused_levels, levels, strict=True))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with torch.no_grad(), torch.autocast("cpu"):
        assert relative_error(fused.float()(images.float()), model.float()(images.float())) < 0.15
