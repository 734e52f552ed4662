import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import convattn
from convattn.explain.grad_cam import grad_cam

TOY = dict(dims=(8, 16, 16, 16), depths=(1, 1, 2, 1), attention_heads=(2, 2), mlp_ratios=(2, 2, 2, 2), num_classes=5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return convattn.create_model("smt_nano", **TOY).eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def naive_grad_cam(model, layer, images, target=None):
    """The formula, one image at a time, with plain hooks."""
    heats = []
    for index, image in enumerate(images):
        kept = {}
        forward = layer.register_forward_hook(lambda module, args, out, kept=kept: kept.update(out=out))
        logits = model(image[None])[0]
        forward.remove()
        chosen = int(logits.argmax()) if target is None else int(target[index])
        (gradient,) = torch.autograd.grad(logits[chosen], kept["out"])
        heat = torch.zeros(kept["out"].shape[-2:])
        for channel in range(gradient.shape[1]):
            heat += gradient[0, channel].mean() * kept["out"][0, channel].detach()
        heat = F.interpolate(heat.clamp(min=0)[None, None], images.shape[-2:], mode="bilinear")[0, 0]
        heats.append(heat / heat.max() if heat.max() > 0 else heat)
    return torch.stack(heats)


@pytest.mark.parametrize("layer", [None, "stages.3", "stages.1", "stages.2.blocks.0.token_mixer"])
def test_agrees_with_the_formula(model, images, layer):
    want = naive_grad_cam(model, model.get_submodule(layer or "stages.3"), images)
    got = grad_cam(model, images, layer=layer)
    assert got.shape == (4, 32, 48)
    assert got.dtype == torch.float32
    assert want.max() == 1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if layer == "stages.1" else 3e-6)


def test_agrees_with_the_formula_in_double_precision(model, images):
    model, images = model.double(), images.double()
    want = naive_grad_cam(model, model.stages[2], images)
    torch.testing.assert_close(grad_cam(model, images, layer=model.stages[2]), want, rtol=1e-6, atol=1e-6)


def test_one_target_for_all_and_one_for_each(model, images):
    each = torch.tensor([0, 4, 2, 1])
    torch.testing.assert_close(
        grad_cam(model, images, each), naive_grad_cam(model, model.stages[3], images, each), rtol=0, atol=3e-6
    )
    want = naive_grad_cam(model, model.stages[3], images, torch.full((4,), 3))
    torch.testing.assert_close(grad_cam(model, images, 3), want, rtol=0, atol=3e-6)


class LinearMap(nn.Module):
    """Channels are passed on unchanged, averaged, and weighed: the class map is known."""

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, -2.0], [-1.0, 0.0]])

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def test_a_case_worked_by_hand():
    image = torch.tensor([[[4.0, 2.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 0.5]]])[None]
    # weights of class 0 are (1, -2) / 4, so the map is (a - 2b) / 4 = [[2, 2], [-6, 0]] / 4
    assert grad_cam(LinearMap(), image, 0, "features").tolist() == [[[1.0, 1.0], [0.0, 0.0]]]
    # class 1 has nothing but counter-evidence: no division by zero
    assert grad_cam(LinearMap(), image, 1, "features").tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_the_model_is_left_as_it_was(model, images):
    model.train()
    model.stages[0].eval()
    model.stem.conv1.weight.requires_grad_(False)
    for parameter in model.stages[1].parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model)
    grad_cam(model, images)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)
        assert now.requires_grad == then.requires_grad
        assert (now.grad is None) == (not name.startswith("stages.1."))
        assert now.grad is None or bool((now.grad == 1).all())
    assert all(torch.equal(now, then) for now, then in zip(model.buffers(), before.buffers(), strict=True))


def test_an_error_leaves_the_model_as_it_was_too(model, images):
    model.train()
    with pytest.raises(ValueError, match="not a map"):
        grad_cam(model, images, layer="head")
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_models_and_disabled_gradients(model, images):
    want = grad_cam(model, images)
    with torch.no_grad():
        assert torch.equal(grad_cam(model, images), want)
    with torch.inference_mode():
        assert torch.equal(grad_cam(model, images + 0), want)
    model.requires_grad_(False)
    assert torch.equal(grad_cam(model, images), want)
    assert not images.requires_grad


def test_a_convolutional_network_of_timm(images):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    # its blocks end in an activation that works in place
    want = naive_grad_cam(model, model.layer4, images)
    torch.testing.assert_close(grad_cam(model, images), want, rtol=0, atol=1e-5)


def test_a_network_whose_maps_are_channels_last():
    torch.manual_seed(0)
    options = dict(img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2))
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **options).eval()
    images = torch.randn(2, 3, 32, 32)
    kept = {}
    hook = model.layers[1].register_forward_hook(lambda module, args, out: kept.update(out=out))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), kept["out"])
    assert kept["out"].shape == (2, 8, 8, 16)
    heat = (gradient.mean((1, 2), keepdim=True) * kept["out"].detach()).sum(3).relu()
    heat = F.interpolate(heat[:, None], (32, 32), mode="bilinear")[:, 0]
    want = heat / heat.amax((1, 2), keepdim=True)
    torch.testing.assert_close(grad_cam(model, images, 2), want, rtol=0, atol=1e-5)


def test_bad_layers(model, images):
    with pytest.raises(ValueError, match=r"^the model has no layer 'stage\.3'; nearest: stages\.3, "):
        grad_cam(model, images, layer="stage.3")
    with pytest.raises(ValueError, match=r"^this Conv2d is not a module of the model"):
        grad_cam(model, images, layer=nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=r"^the output of layer 'head' is of shape \(4, 5\), not a map \(B, C, H, W\)"):
        grad_cam(model, images, layer=model.head)
    with pytest.raises(ValueError, match=r"^Sequential does not say what its last level is \(feature_info\)"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(4608, 2)), images)


def test_models_and_targets_without_the_class(model, images):
    with pytest.raises(ValueError, match=r"^target 5 is out of range; classes are 0 to 4$"):
        grad_cam(model, images, 5)
    with pytest.raises(ValueError, match=r"^target has shape \(3,\); expected one class, or one for each image$"):
        grad_cam(model, images, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"^SMT has no classes \(num_classes is 0\)"):
        grad_cam(convattn.create_model("smt_nano", **{**TOY, "num_classes": 0}), images)
    with pytest.raises(ValueError, match=r"does not return logits \(B, classes\)"):
        grad_cam(nn.Sequential(model.stem, model.stages), images, layer="1")


def test_the_case_of_two_channels():
    """relu(x0 - x1) over its maximum, each value where it belongs."""
    model = LinearMap()
    model.head.weight.data = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    x = torch.zeros(1, 2, 4, 4)
    x[0, 0, 1, 2], x[0, 1, 1, 2], x[0, 0, 0, 0], x[0, 1, 3, 3] = 3, 1, 1, 5
    want = torch.zeros(4, 4)
    want[1, 2], want[0, 0] = 1, 0.5
    assert torch.equal(grad_cam(model, x, 0, "features")[0], want)


def test_layer_mean_linear_gives_the_class_activation_map():
    torch.manual_seed(2)
    model = LinearMap()
    nn.init.normal_(model.head.weight)
    x = torch.randn(3, 2, 5, 7)
    cam = torch.einsum("c,bchw->bhw", model.head.weight[1].detach(), x).relu()
    torch.testing.assert_close(grad_cam(model, x, 1, "features"), cam / cam.amax((1, 2), keepdim=True))
