"""What is recomputed in backward measures nothing a second time."""

import copy

import pytest
import torch
from torch import nn

import convattn
from convattn.backbones.recompute import recompute
from toys import build_toy, toy_images


def assert_measured_once(plain: nn.Module, images: torch.Tensor) -> None:
    """Two steps with and without gradient checkpointing: every buffer is the same."""
    recomputed = copy.deepcopy(plain)
    recomputed.set_grad_checkpointing()
    before = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    for _ in range(2):
        for model in (plain, recomputed):
            model(images).square().sum().backward()
    found = dict(recomputed.named_buffers())
    assert all(torch.equal(buffer, found[name]) for name, buffer in plain.named_buffers())
    counts = [buffer for name, buffer in found.items() if name.endswith("num_batches_tracked")]
    assert counts and all(int(count) == 2 for count in counts)
    assert any(not torch.equal(buffer, before[name]) for name, buffer in found.items())


@pytest.mark.parametrize(("name", "where"), [("smt_nano", "stages"), ("cotnet_nano", "blocks")])
def test_norms_of_attached_blocks_measure_once(name, where):
    model = convattn.attach(build_toy(name), "cot", where=where, init="paper").train()
    assert_measured_once(model, toy_images(name))


def test_a_cumulative_average_counts_each_batch_once():
    model = build_toy("nextvit_nano").train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    assert_measured_once(model, toy_images("nextvit_nano"))


def test_checkpointing_can_be_turned_off_again():
    model = build_toy("cotnet_nano").train()
    kinds = [type(module) for module in model.modules()]
    model.set_grad_checkpointing()
    assert [type(module) for module in model.modules()] != kinds
    model.set_grad_checkpointing(False)
    assert [type(module) for module in model.modules()] == kinds


def test_statistics_are_back_where_the_second_run_fails():
    class Fails(nn.Module):
        runs = 0

        def forward(self, x):
            self.runs += 1
            if self.runs == 2:
                raise RuntimeError("out of memory")
            return x.exp().exp()

    block = nn.Sequential(nn.BatchNorm2d(3), Fails())
    mean = block[0].running_mean
    output = recompute([block], torch.randn(2, 3, 4, 4, requires_grad=True))
    after = mean.clone()
    with pytest.raises(RuntimeError, match="out of memory"):
        output.sum().backward()
    assert block[0].running_mean is mean and torch.equal(mean, after)


def test_other_buffers_than_statistics_are_not_copied():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(3))
            self.seen = []

        def forward(self, x):
            self.seen.append(self.table)
            return (x * self.table[:, None, None]).exp()

    block = Table()
    recompute([block], torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    assert len(block.seen) == 2 and all(buffer is block.table for buffer in block.seen)
