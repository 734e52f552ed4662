"""What is kept of a forward pass, and that nothing of it stays behind."""

import pytest
import torch
from torch import nn

from convattn.explain.captures import captures


def network():
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1))
    layers[0].weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    layers[0].bias.data.zero_()
    return layers


def hooks_of(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]


def test_what_an_in_place_activation_overwrites_is_kept_as_it_was():
    model = network()
    with captures(model, ["0", "1"], ["2"]) as kept:
        model(torch.full((1, 1, 1, 1), 3.0))
    assert kept.outputs["0"].flatten().tolist() == [3.0, -3.0]
    assert kept.outputs["1"].flatten().tolist() == kept.inputs["2"].flatten().tolist() == [3.0, 0.0]


def test_what_is_reckoned_at_once_sees_it_as_it_was_too():
    model = network()
    with captures(model, ["0"], keep=lambda name, x: (name, x.sum().item(), x.data_ptr())) as kept:
        model(torch.full((1, 1, 1, 1), 3.0))
    name, total, _ = kept.outputs["0"]
    assert (name, total) == ("0", 0.0)


def test_hooks_are_gone_and_modes_are_back():
    model = network()
    model.train()
    model[1].eval()
    with captures(model, ["0"], ["2"]):
        assert not any(module.training for module in model.modules())
        assert len(hooks_of(model)) == 2
        model(torch.zeros(1, 1, 1, 1))
    assert hooks_of(model) == []
    assert [module.training for module in model.modules()] == [True, True, False, True]


@pytest.mark.parametrize("place", ["inside", "forward", "name"])
def test_after_an_error_too(place):
    model = network().train()
    names = ["0", "9"] if place == "name" else ["0"]

    def run():
        with captures(model, names):
            if place == "inside":
                raise RuntimeError("stop")
            model(torch.zeros(1, 7, 1, 1))

    with pytest.raises((RuntimeError, AttributeError)):
        run()
    assert hooks_of(model) == []
    assert all(module.training for module in model.modules())


def test_a_module_that_does_not_run():
    model = network()
    model.add_module("unused", nn.ModuleList([nn.Identity()]))
    match = r"^unused.0 does not run by itself in a forward pass; choose a module that does$"
    with pytest.raises(ValueError, match=match), captures(model, ["0", "unused.0"]):
        nn.Sequential(*list(model)[:3])(torch.zeros(1, 1, 1, 1))
    assert hooks_of(model) == []
