"""The form for graph runtimes: same values, other operations."""

import pytest
import torch
from torch import nn

import convattn
from convattn.deploy.graph_form import graph_form
from convattn.ops.linear import Linear2d
from toys import build_toy, relative_error


@pytest.mark.parametrize(
    "name", ["cotnet_nano", "cotnext_50", "nextvit_nano", "resnet18_das", "smt_nano", "groupmixformer_nano"]
)
def test_agrees_with_the_model_and_leaves_the_fused_one(name):
    model = build_toy(name).double()
    fused = convattn.fuse(model)
    before = [type(module) for module in fused.modules()]
    form = graph_form(fused)
    images = torch.randn(2, 3, 41, 55, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(form(images), model(images)) < 1e-9
        assert torch.equal(graph_form(form)(images), form(images))  # nothing is left to do
    assert [type(module) for module in fused.modules()] == before
    assert not [module for module in form.modules() if isinstance(module, Linear2d)]


class _Offering(nn.Linear):
    def graph_form(self) -> nn.Module:
        return nn.Sequential(Linear2d(3, 3), nn.ReLU())


def test_what_a_block_offers_is_taken_as_it_is():
    form = graph_form(nn.Sequential(_Offering(3, 3), Linear2d(3, 3)))
    assert isinstance(form[0][0], Linear2d)
    assert type(form[1]) is nn.Conv2d
    assert isinstance(graph_form(_Offering(3, 3)), nn.Sequential)


def test_a_block_with_a_hook_stays():
    model = nn.Sequential(Linear2d(3, 3))
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(graph_form(model)(x), model(x))
