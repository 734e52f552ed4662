"""Walks over modules: ties stay ties, what others have hung on a module is seen, copies are whole."""

import types
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

import convattn
from convattn.training.build import build_ema
from convattn.training.config import LoopConfig
from convattn.walk import copied, exchange, hung_inside, hung_on, names_of, probe, put


class Caching(nn.Module):
    """Keeps what it has computed with gradients, as some attentions keep their bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.kept: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        if not self.kept:
            self.kept = {"bias": [2 * self.conv.weight.mean()]}
        return self.conv(x) + self.kept["bias"][0]


def shared() -> nn.Sequential:
    """A convolution in three places, under two parents."""
    conv = nn.Conv2d(4, 4, 1)
    return nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU(), conv, nn.Sequential(conv))


def normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="deprecated"):
        return weight_norm(nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize("build", [Caching, normed], ids=["cache", "weight norm"])
def test_a_model_that_has_run_with_gradients_is_copied(build):
    model, images = nn.Sequential(build()), torch.randn(1, 3, 5, 5)
    want = model(images).detach()
    with pytest.raises(RuntimeError, match="graph leaves"):
        deepcopy(model)
    for make in (
        copied,
        convattn.fuse,
        lambda model: convattn.attach(model, "se", where=["0"], input_size=(3, 5, 5)),
        lambda model: convattn.prepack(model.eval(), images),
        lambda model: build_ema(model, LoopConfig(ema_decay=0.9)).module,
    ):
        with torch.no_grad():
            assert torch.allclose(make(model)(images), want, atol=1e-6)
    copy = copied(model)
    nn.init.zeros_(copy[0].conv.weight if build is Caching else copy[0].weight_g)
    assert torch.equal(model(images), want)


def test_what_stands_in_several_places_is_exchanged_once_and_everywhere():
    model = shared()
    asked: list[str] = []

    def offer(name: str, module: nn.Module) -> nn.Module | None:
        asked.append(name)
        return nn.Conv2d(4, 4, 3) if name == "1" else None

    assert exchange(model, offer) is model
    assert model[1] is model[3] is model[4][0] and model[1].kernel_size == (3, 3)
    assert asked == ["", "0", "1", "2", "4"]
    assert names_of(model)[model[1]] == ["1", "3", "4.0"]
    put(model, model[1], nn.Identity())
    assert [type(part) for part in (model[1], model[3], model[4][0])] == [nn.Identity] * 3
    assert isinstance(exchange(nn.ReLU(), lambda name, module: nn.GELU()), nn.GELU)


HUNG = {
    "forward hook": (lambda m: m.register_forward_hook(print), "has a forward hook"),
    "forward hook with kwargs": (lambda m: m.register_forward_hook(print, with_kwargs=True), "has a forward hook"),
    "pre-hook": (lambda m: m.register_forward_pre_hook(print), "has a forward hook"),
    "pre-hook with kwargs": (lambda m: m.register_forward_pre_hook(print, with_kwargs=True), "has a forward hook"),
    "backward hook": (lambda m: m.register_full_backward_hook(print), "has a backward hook"),
    "backward pre-hook": (lambda m: m.register_full_backward_pre_hook(print), "has a backward hook"),
    "parametrised": (parametrizations.weight_norm, "has a parametrised weight"),
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", 0.5), "has a forward hook"),
    "own forward": (
        lambda m: setattr(m, "forward", types.MethodType(lambda self, x: x, m)),
        "has a forward of its own",
    ),
    "own inner method": (lambda m: setattr(m, "_conv_forward", lambda *args: None), "has a _conv_forward of its own"),
}


@pytest.mark.parametrize("case", HUNG)
def test_what_hangs_on_a_module_keeps_it_and_what_is_around_it(case):
    hang, words = HUNG[case]
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.ReLU())
    assert hung_inside(model) is None
    hang(model[0][0])
    conv, around = model[0][0], model[0]
    assert hung_on(conv) == words and hung_on(around) is None
    assert hung_inside(model) == f"0.0 {words}" and hung_inside(conv) == f"it {words}"
    exchange(model, lambda name, module: nn.Identity())
    assert model[0] is around and around[0] is conv
    assert type(around[1]) is type(model[1]) is nn.Identity


def test_a_probe_has_shapes_and_ties_and_nobody_listens_to_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).train()
    model[2].weight = model[1].weight
    prune.l1_unstructured(model[0], "weight", 0.5)
    heard: list[Tensor] = []
    model[1].register_forward_hook(lambda module, inputs, output: heard.append(output))
    network = probe(model)
    assert network(torch.empty(2, 3, 7, 5, device="meta")).shape == (2, 4, 7, 5)
    assert heard == []
    assert network[1].weight is network[2].weight and network[1].weight.is_meta
    assert not network.training and model.training
    assert not model[1].weight.is_meta and model[1]._forward_hooks
