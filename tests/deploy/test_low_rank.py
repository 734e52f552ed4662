"""Tensors of few dimensions hold the same numbers; the operators that stand in for others compute the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from convattn.deploy.runtimes.decompositions import decompositions
from convattn.deploy.runtimes.low_rank import LowRank
from toys import relative_error


class Formula(nn.Module):
    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, x):
        return self.formula(x)


def many(x):
    """(B, 6, H, W) as (B, 1, 6, 1, 1, H, W)."""
    return x.unflatten(1, (1, 6, 1, 1))


FORMULAS = {
    "sum with a broadcast operand": lambda x: (many(x) * many(x)[:, :, :1] + 2).flatten(1, 4),
    "permute": lambda x: many(x).permute(0, 3, 5, 1, 4, 6, 2).flatten(1),
    "select and slice": lambda x: many(x)[:, :, 1, :, :, 1:, ::2].flatten(1),
    "select of length 1": lambda x: many(x)[:, 0, :, 0].flatten(1),
    "pad and crop": lambda x: F.pad(many(x), (1, -1, 0, 2, 0, 0, 1, 0)).flatten(1),
    "unbind": lambda x: torch.stack(many(x).unbind(2), 1).flatten(1),
    "cat along length 1": lambda x: torch.cat([many(x), many(x) + 1], 3).flatten(1),
    "sums": lambda x: (many(x).sum((2, 3), keepdim=True) - many(x).mean(-1, keepdim=True)).flatten(1),
    "expand": lambda x: many(x).expand(-1, 4, -1, -1, -1, -1, -1).flatten(1),
    "unsqueeze and clone": lambda x: many(x)[:, :, None].clone().flatten(1),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_no_tensor_has_more_dimensions_and_no_number_changes(name, free):
    model, x = Formula(FORMULAS[name]), torch.randn(2, 6, 5, 4)
    shapes = ({0: Dim("batch", min=1, max=8)},) if free else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes).run_decompositions(decompositions())
    assert max(_ranks(program)) > 5
    low = torch.export.export(LowRank(program, 5), (x,), dynamic_shapes=shapes)
    assert max(_ranks(low)) <= 5
    for batch in (1, 2, 3) if free else (2,):
        x = torch.randn(batch, 6, 5, 4)
        assert torch.equal(low.module()(x), model(x))


def test_an_unknown_operator_on_a_large_tensor_is_named():
    program = torch.export.export(Formula(lambda x: many(x).cumsum(4).flatten(1)), (torch.randn(2, 6, 5, 4),))
    program = program.run_decompositions(decompositions())
    with pytest.raises(NotImplementedError, match=r"aten.cumsum.default on a tensor of 7 dimensions"):
        LowRank(program, 5)(torch.randn(2, 6, 5, 4))


@pytest.mark.parametrize(
    ("operator", "formula"),
    [
        ("addcmul", lambda x: torch.addcmul(x, x, x + 1, value=3)),
        ("lerp", lambda x: torch.lerp(x, x * 2 + 1, x.sigmoid())),
        ("var_mean", lambda x: torch.cat(torch.var_mean(x, (2, 3), correction=0, keepdim=True))),
        ("var_mean", lambda x: torch.cat(torch.var_mean(x, (1,), correction=1))),
        (
            "group_norm",
            lambda x: F.group_norm(x, 2, torch.linspace(1, 2, 6).to(x), torch.linspace(0, 1, 6).to(x), 1e-3),
        ),
        ("group_norm", lambda x: F.group_norm(x, 3)),
        (".pad.", lambda x: F.pad(x, (-1, 2, 3, -2), value=5)),
        (".pad.", lambda x: F.pad(x, (-1, -1))),
    ],
)
def test_stand_ins_compute_the_same(operator, formula):
    model, x = Formula(formula), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    before = torch.export.export(model, (x,))
    assert any(operator in str(node.target) for node in before.graph.nodes)
    after = before.run_decompositions(decompositions())
    assert not any(operator in str(node.target) for node in after.graph.nodes)
    assert relative_error(after.module()(x), model(x)) < 1e-12


def _ranks(program):
    values = (node.meta.get("val") for node in program.graph.nodes)
    return [value.ndim for value in values if isinstance(value, torch.Tensor)]
