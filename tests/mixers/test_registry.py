"""Mixers by name: each one keeps the shape of a map, and refuses what it does not know."""

import pytest
import torch
from timm.layers import create_attn

from convattn.mixers.registry import create_identity, create_mixer, is_gate, list_mixers
from toys import randomise_norms, relative_error

OWN = {
    "sam",
    "gma",
    "group_aggregator",
    "mhca",
    "e_mhsa",
    "sr_mhsa",
    "window_mhsa",
    "cot",
    "coxt",
    "das",
    "das_dw",
    *(f"das_{row}" for row in "abdefgh"),
    "triplet",
    "bam",
}
every_mixer = pytest.mark.parametrize("name", list_mixers())


def test_names_are_sorted_and_complete():
    assert list_mixers() == sorted(list_mixers())
    assert set(list_mixers()) >= OWN
    assert {"se", "ese", "eca", "ecam", "ceca", "ge", "gc", "gca", "cbam", "lcbam", "nl", "bat", "sk", "splat"} <= set(
        list_mixers()
    )
    assert {"coord", "scoord", "ela", "strip"} <= set(list_mixers())


@every_mixer
def test_keeps_the_shape_and_lets_gradients_through(name):
    mixer = create_mixer(name, 160)
    randomise_norms(mixer)
    x = torch.randn(2, 160, 14, 7, requires_grad=True)
    out = mixer(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()


@every_mixer
def test_what_starts_as_identity_is_one(name):
    block = create_identity(name, 160)
    assert (block is None) == (name not in {"das", "das_dw", "das_d", "das_e", "das_f", "nl", "gca"})
    if block is not None:
        x = torch.randn(2, 160, 14, 14)
        assert relative_error(block(x), x) < 1e-6


def test_timms_are_timms():
    mixer = create_mixer("se", 32, rd_ratio=0.5)
    assert type(mixer) is type(create_attn("se", 32))
    assert mixer.fc1.out_channels == 16


def test_gates_weight_their_input():
    x = torch.zeros(1, 160, 14, 14)
    others = {"nl", "bat", "gca", "das_a", "das_g", "das_h"}  # what they give takes the place of the map
    gates = [name for name in list_mixers() if is_gate(name) and name not in others]
    assert {"das", "das_dw", "das_b", "triplet", "bam", "se", "cbam"} <= set(gates)
    for name in gates:
        assert not create_mixer(name, 160).eval()(x).any(), name


@pytest.mark.parametrize(
    ("name", "dim", "options", "message"),
    [
        ("ca", 32, {}, r"unknown mixer 'ca'; nearest: gca, eca, mhca"),
        ("mhsa", 32, {}, r"unknown mixer 'mhsa'; nearest: .*e_mhsa"),
        ("das", 32, {"alfa": 0.1}, r"unknown option 'alfa' of mixer das; nearest: alpha"),
        ("eca", 32, {"kernel_size": 7}, r"unknown option 'kernel_size' of mixer eca"),
        ("sam", 30, {}, r"num_heads 4 does not divide dim 30; the nearest that does is"),
        ("e_mhsa", 30, {}, r"head_dim 32 does not divide dim 30; the nearest that does is 30"),
        ("mhca", 40, {}, r"head_dim 32 does not divide dim 40; the nearest that does is 40"),
        ("cot", 30, {}, r"dim 30 must be a multiple of 8; the nearest is 32"),
        ("gma", 32, {}, r"dim 32 does not divide into .* segments; the nearest that does is"),
        ("group_aggregator", 30, {}, r"dim 30 does not divide into 4 segments; the nearest that does is"),
    ],
)
def test_refusals(name, dim, options, message):
    with pytest.raises(ValueError, match=message) as error:
        create_mixer(name, dim, **options)
    assert "\n" not in str(error.value)
