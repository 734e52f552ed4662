"""Which batch norms are folded into the layers beside them, layer by layer; and which are rightly left."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.ops import FrozenBatchNorm2d

import convattn
from convattn.ops.linear import Linear2d
from toys import lively, randomise_norms, relative_error


def prepared(model: nn.Module) -> nn.Module:
    """In float64, statistics and weights at random."""
    randomise_norms(lively(model))
    return model.double().eval()


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm | FrozenBatchNorm2d)
    ]


@torch.no_grad()
def error_of(fused: nn.Module, model: nn.Module, size: tuple[int, int] = (33, 47)) -> float:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    return relative_error(fused(images), model(images))


class Called(nn.Module):
    """A few layers by name, and how they are called."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def pooled(*layers: nn.Module) -> nn.Module:
    """Layers of vectors, behind a mean over all positions of 8 channels."""
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


def sequence(*layers: nn.Module) -> nn.Module:
    """Layers of (B, 3, N)."""
    return nn.Sequential(nn.Flatten(2), *layers)


def volume(*layers: nn.Module) -> nn.Module:
    """Layers of (B, 3, 1, H, W)."""
    return nn.Sequential(nn.Unflatten(1, (3, 1)), *layers)


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "behind": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
    "without bias": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)),
    "grouped": lambda: nn.Sequential(nn.Conv2d(3, 9, 3, 2, 2, dilation=2, groups=3, bias=False), nn.BatchNorm2d(9)),
    "reflected": lambda: nn.Sequential(nn.Conv2d(3, 8, 5, padding=2, padding_mode="reflect"), nn.BatchNorm2d(8)),
    "same": lambda: nn.Sequential(nn.Conv2d(3, 8, (4, 3), padding="same"), nn.BatchNorm2d(8)),
    "same as tensorflow": lambda: nn.Sequential(Conv2dSame(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), nn.BatchNorm2d(8)),
    "transposed, grouped": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3, 2, groups=3, bias=False), nn.BatchNorm2d(6)
    ),
    "one dimension": lambda: sequence(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)),
    "three dimensions": lambda: volume(nn.Conv3d(3, 8, (1, 3, 3)), nn.BatchNorm3d(8)),
    "linear": lambda: pooled(nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU()),
    "linear over a map": lambda: nn.Sequential(Linear2d(3, 8), nn.BatchNorm2d(8)),
    "dropout between": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.BatchNorm2d(8)),
    "no affine": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
    "other epsilon": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.1)),
    "with activation": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8, act_layer=nn.SiLU)),
    "frozen": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8, eps=1e-3)),
    "synchronised": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8)),
    "in front": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1, 2)),
    "in front, 2x2": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 9, 2, 2, groups=3, bias=False)),
    "in front, no affine": lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 8, 1, bias=False)),
    "in front, linear": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 5)
    ),
    "in front of two": lambda: Called(
        lambda m, x: torch.cat([m.a(y := m.norm(x)), m.b(y)[..., :1, :1].expand(-1, -1, *x.shape[2:])], 1),
        norm=nn.BatchNorm2d(3),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 2, bias=False),
    ),
    "two in a row": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
    "on both sides": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
    "one channel": lambda: nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1)),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folded_exactly(case):
    model = prepared(FOLDED[case]())
    state = copy.deepcopy(model.state_dict())
    fused = convattn.fuse(model)
    assert not norms_of(fused), fused.fusion_report.left
    assert error_of(fused, model) < 1e-12
    assert fused.fusion_report and not fused.fusion_report.left
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    return model


def registered_twice() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    return Called(lambda m, x: m.other_name(m.conv(x)), conv=nn.Conv2d(3, 8, 3), norm=norm, other_name=norm)


def with_weight_norm() -> nn.Module:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(conv, nn.BatchNorm2d(8))


def pruned() -> nn.Module:
    conv = prune.l1_unstructured(nn.Conv2d(3, 8, 3), "weight", 0.5)
    return nn.Sequential(conv, nn.BatchNorm2d(8))


class DoublingConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight) * 2


class UnbiasedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight)


class CenteredNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 1


def pads_odd_sides(model: nn.Module, x: Tensor) -> Tensor:
    x = model.norm(x)
    if x.shape[2] % 2 or x.shape[3] % 2:
        x = nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return model.conv(x)


def conv_and_norm() -> dict[str, nn.Module]:
    return {"conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8)}


READS = "with norms folded the network gives other numbers or does not run: it reads its layers by itself"
LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "statistics of the batch": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        "it normalises by the statistics of each batch",
    ),
    "in front of zeros": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)),
        "behind the input, in front of conv2d that pads",
    ),
    "in front of transposed": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 8, 3)),
        "behind the input, in front of conv_transpose2d",
    ),
    "in front of padding at odd sizes": (
        lambda: Called(pads_odd_sides, norm=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 8, 2, 2)),
        "what stands beside it depends on the size or number of images",
    ),
    "of single images only": (
        lambda: Called(lambda m, x: m.norm(m.conv(x)) if len(x) == 1 else m.conv(x), **conv_and_norm()),
        "what stands beside it depends on the size or number of images",
    ),
    "whose number is read": (lambda: Called(lambda m, x: m.norm(m.conv(x)) * m.norm.eps, **conv_and_norm()), READS),
    "whose layer is asked": (
        lambda: Called(
            lambda m, x: m.norm(m.conv(x)) * (1 if m.conv.bias is None else 2),
            conv=nn.Conv2d(3, 8, 3, bias=False),
            norm=nn.BatchNorm2d(8),
        ),
        READS,
    ),
    "in front of an activation": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 8, 1)),
        "behind the input, in front of relu",
    ),
    "in front of a layer and something else": (
        lambda: Called(lambda m, x: m.conv(y := m.norm(x)) + y, norm=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 3, 1)),
        "behind the input, in front of conv2d, add",
    ),
    "output read twice": (
        lambda: Called(lambda m, x: m.norm(y := m.conv(x)) + y, **conv_and_norm()),
        "behind conv2d that others see too, in front of add",
    ),
    "output changed in place": (
        lambda: Called(lambda m, x: m.norm(torch.relu_(m.conv(x))), **conv_and_norm()),
        "behind conv2d that others see too, in front of the output",
    ),
    "called twice": (
        lambda: Called(lambda m, x: m.norm(m.conv(x)) + m.conv(x), **conv_and_norm()),
        "behind conv2d with weights that others use, or that are computed, in front of add",
    ),
    "norm called twice": (
        lambda: Called(lambda m, x: m.norm(m.norm(m.conv(x))), **conv_and_norm()),
        "it, or a tensor of it, is used in several places",
    ),
    "weights tied": (tied, "behind conv2d with weights that others use, or that are computed, in front of conv2d"),
    "weights used elsewhere": (
        lambda: Called(lambda m, x: m.norm(m.conv(x)) + m.conv.weight.sum(), **conv_and_norm()),
        "behind conv2d with weights that others use, or that are computed, in front of add",
    ),
    "registered twice": (registered_twice, "it, or a tensor of it, is used in several places"),
    "parametrised": (
        with_weight_norm,
        "behind conv2d with weights that others use, or that are computed, in front of the output",
    ),
    "forward of its own": (
        lambda: nn.Sequential(DoublingConv(3, 8, 3), nn.BatchNorm2d(8)),
        "behind mul, in front of the output",
    ),
    "bias of no effect": (
        lambda: nn.Sequential(UnbiasedConv(3, 8, 3, bias=False), nn.BatchNorm2d(8)),
        "behind conv2d with weights that others use, or that are computed, in front of the output",
    ),
    "norm with a forward of its own": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), CenteredNorm(8)),
        "CenteredNorm has a forward of its own",
    ),
    "tokens": (  # the norm's channels are the tokens there
        lambda: sequence(nn.AdaptiveAvgPool1d(7), nn.Linear(7, 5), nn.BatchNorm1d(3)),
        "behind linear, in front of the output",
    ),
    "not run": (
        lambda: Called(lambda m, x: m.conv(x), **conv_and_norm()),
        "it does not run",
    ),
    "not a network of images": (
        lambda: Called(
            lambda m, x: m.norm(m.conv(x.contiguous() if x.device.type == "cpu" else [])), **conv_and_norm()
        ),
        "the network does not run on an image alone",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_with_the_reason(case):
    build, reason = LEFT[case]
    model = prepared(build())
    fused = convattn.fuse(model)
    assert list(fused.fusion_report.left.values()) == [reason]
    assert len(norms_of(fused)) == 1
    assert error_of(fused, model) < 1e-12
    assert reason in fused.fusion_report.to_markdown()


def test_a_pruned_layer_keeps_its_mask():
    model = prepared(pruned())
    with torch.no_grad():
        model(torch.randn(1, 3, 5, 5, dtype=torch.float64))  # until then torch refuses to copy it
    assert error_of(convattn.fuse(model), model) < 1e-12


HOOKED = {"the layer": "0", "the norm": "1", "around the layer": "inner", "around all": ""}


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
@pytest.mark.parametrize("place", HOOKED.values(), ids=HOOKED)
def test_who_listens_sees_what_there_was_to_see(place, kind):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)]
    if place == "inner":
        layers[0] = nn.Sequential(layers[0])
    model = prepared(nn.Sequential(*layers))
    heard: list[Tensor] = []

    def listen(module, inputs, output=None):
        heard.append((inputs[0] if output is None else output).detach().cpu().clone())

    part = model[0] if place == "inner" else model.get_submodule(place)
    getattr(part, f"register_{kind}_hook")(listen)
    fused = convattn.fuse(model)
    heard.clear()
    assert error_of(fused, model) < 1e-12
    assert len(heard) == 2
    assert relative_error(heard[0], heard[1]) < 1e-12
    assert len(norms_of(fused)) == (0 if place == "" else 1)


def test_a_hook_that_reads_values_is_not_called_by_fuse():
    model = prepared(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    calls: list[float] = []
    model[2].register_forward_hook(lambda module, inputs, output: calls.append(float(output.max())))
    assert not norms_of(convattn.fuse(model))
    assert calls == []


def test_layers_reached_by_a_plain_list_too():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.order = [self.conv, self.norm]

        def forward(self, x: Tensor) -> Tensor:
            return self.order[1](self.order[0](x))

    model = prepared(Listed())
    assert error_of(convattn.fuse(model), model) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_type(dtype):
    model = prepared(FOLDED["on both sides"]()).to(dtype)
    fused = convattn.fuse(model)
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    images = torch.randn(2, 3, 33, 47).to(dtype)
    with torch.no_grad():
        assert relative_error(fused(images), model.double()(images.double())) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_fused_in_a_context_is_as_fused_outside(context):
    model = prepared(FOLDED["behind"]())
    with context():
        fused = convattn.fuse(model)
    assert not norms_of(fused)
    assert not any(tensor.is_inference() for tensor in fused.state_dict().values())
    assert error_of(fused, model) < 1e-12


def test_a_model_on_the_meta_device_keeps_its_shapes():
    with torch.device("meta"):
        model = FOLDED["behind"]().eval()
    fused = convattn.fuse(model)
    assert not norms_of(fused)
    assert fused(torch.empty(1, 3, 9, 9, device="meta")).shape == (1, 8, 9, 9)


def test_the_report_is_a_table():
    model = prepared(
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    )
    report = convattn.fuse(model).fusion_report
    assert str(report).splitlines() == [
        "| part | kind | inference form | parameters |",
        "| --- | --- | --- | ---: |",
        "| 1 | Conv2d | took in batch norm 0 in front of it and batch norm 2 behind it | 54 -> 32 |",
        "",
        "| batch norm left | why |",
        "| --- | --- |",
        "| 4 | behind relu, in front of the output |",
    ]


class ByHand(nn.Module):
    """Computes with the tensors of a layer or a norm that it does not call."""

    def __init__(self, what: str):
        super().__init__()
        self.what, self.conv, self.norm = what, nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.flat, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight) if self.what == "conv" else self.conv(x)
        if self.what == "norm":
            tensors = (self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias)
            x = F.batch_norm(x, *tensors, eps=0.3)
        else:
            x = self.norm(x)
        x = self.flat(x.relu().mean((2, 3)))
        return F.linear(x, self.linear.weight) if self.what == "linear" else self.linear(x)


@pytest.mark.parametrize(
    ("what", "left"), [("nothing", []), ("conv", ["norm"]), ("norm", ["norm"]), ("linear", ["flat"])]
)
def test_layers_and_norms_that_are_not_called_stay(what, left):
    model, images = ByHand(what), torch.randn(2, 3, 9, 8)
    randomise_norms(model.eval())
    fused = convattn.fuse(model)
    with torch.no_grad():
        assert relative_error(fused(images), model(images)) < 1e-5
    assert list(fused.fusion_report.left) == left
