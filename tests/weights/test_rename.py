"""The name map is complete both ways for every variant, and knows the spellings of the authors' other repositories."""

import pytest
import torch

import convattn
from convattn.weights.rename import NameMap
from convattn.weights.smt import SMT_NAMES
from golden_file import official_shapes

VARIANTS = ["smt_nano", "smt_tiny", "smt_small", "smt_base", "smt_large"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_name_has_one_counterpart(variant):
    with torch.device("meta"):
        ours = list(convattn.create_model(variant).state_dict())
    theirs = [SMT_NAMES.to_theirs(name) for name in ours]
    assert None not in theirs
    assert len(set(theirs)) == len(ours)
    assert [SMT_NAMES.to_ours(name) for name in theirs] == ours


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_names_and_shapes_are_those_of_the_authors(variant):
    with torch.device("meta"):
        ours = convattn.to_official(convattn.create_model(variant))
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == official_shapes(variant)


def test_detection_repositories_spelling():
    name = "block3.1.attn.dw_conv.weight"
    assert SMT_NAMES.to_ours(name) == SMT_NAMES.to_ours(name.replace("dw_conv", "local_conv"))
    assert SMT_NAMES.to_ours(name) == "stages.2.blocks.1.token_mixer.local_conv.weight"


@pytest.mark.parametrize("name", ["block3.weight", "norm", "xblock1.0.norm1.weight", "block1.0.norm1.weight.more", ""])
def test_a_name_that_no_row_knows(name):
    assert SMT_NAMES.to_ours(name) is None


def test_numbers_from_one_and_the_first_row_that_fits():
    names = NameMap({"a.{i}.b.{j}": "x{j+1}.{i}", "a.{i}": "y{i}"})
    assert names.to_theirs("a.3.b.0.weight") == "x1.3.weight"
    assert names.to_ours("x1.3.weight") == "a.3.b.0.weight"
    assert names.to_theirs("a.12") == "y12"
    assert names.to_theirs("a.12.weight") == "y12.weight"
    assert names.to_theirs("b.1") is None
