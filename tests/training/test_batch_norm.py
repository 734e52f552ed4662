"""Batch statistics over two processes are those of the joined batch."""

import copy

import pytest
import timm.layers
import torch
from timm.models import checkpoint_seq
from torch import nn

from convattn.training.batch_norm import AllReduceBatchNorm2d, measure_once, synchronised
from convattn.training.config import ConfigError
from forked_runs import ForkedProgram

# One of two processes: each case's half of the batch goes through a synchronised norm, and everything is written down.
HALF = """
import sys, torch
from torch import nn
from convattn.training.batch_norm import synchronised
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for name, case in torch.load(f"{folder}/cases.pt", weights_only=False).items():
    norm = case["norm"]
    names = list(norm.state_dict())
    norm = synchronised(norm, torch.device("cpu"))
    assert type(norm) is not nn.BatchNorm2d and list(norm.state_dict()) == names
    found = []
    for x, weight in zip(case["inputs"], case["weights"]):
        half = slice(2 * rank, 2 * rank + 2)
        x = x[half].clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=case["autocast"]):
            output = norm(x)
        (output.double() * weight[half]).sum().backward()
        found.append((output.detach(), x.grad, output.is_contiguous(memory_format=torch.channels_last)))
    gradients = [p.grad for p in norm.parameters()]
    norm.eval()
    torch.save((found, gradients, norm.state_dict(), norm(x).detach()), f"{folder}/{name}.{rank}.pt")
torch.distributed.destroy_process_group()
"""


def case(norm, dtype, *, mean=0.0, autocast=False):
    """Two batches of four images and the weights of a loss on the outputs, in channels-last."""
    shape = (4, norm.num_features, 5, 3)
    inputs = [(mean + 3 * torch.randn(shape)).to(dtype, memory_format=torch.channels_last) for _ in range(2)]
    weights = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    return dict(norm=norm, inputs=inputs, weights=weights, autocast=autocast)


def with_values(norm):
    """The norm with random weights."""
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.fixture(scope="module")
def cases():
    torch.manual_seed(0)
    return {
        "double": case(with_values(nn.BatchNorm2d(6)).double(), torch.float64),
        "average": case(nn.BatchNorm2d(6, momentum=None, affine=False).double(), torch.float64),
        "untracked": case(nn.BatchNorm2d(6, track_running_stats=False).double(), torch.float64),
        "far": case(nn.BatchNorm2d(6), torch.float32, mean=1e3),
        "half": case(with_values(nn.BatchNorm2d(6)), torch.bfloat16, mean=10.0, autocast=True),
    }


@pytest.fixture(scope="module")
def found(cases, tmp_path_factory):
    """What the two processes wrote: name -> one entry a process."""
    folder = tmp_path_factory.mktemp("norms")
    torch.save(cases, folder / "cases.pt")
    processes = [ForkedProgram(HALF, folder, rank) for rank in range(2)]
    for process in processes:
        done = process.join()
        assert done.returncode == 0, done.stderr
    return {name: [torch.load(folder / f"{name}.{rank}.pt") for rank in range(2)] for name in cases}


def joined(case):
    """The same on one process with the whole batch in float64: outputs, input and weight gradients, the norm."""
    norm = type(case["norm"])(
        case["norm"].num_features,
        momentum=case["norm"].momentum,
        affine=case["norm"].affine,
        track_running_stats=case["norm"].track_running_stats,
    ).double()
    norm.load_state_dict(case["norm"].state_dict())
    outputs, gradients = [], []
    for x, weight in zip(case["inputs"], case["weights"], strict=True):
        x = x.double().requires_grad_()
        output = norm(x)
        (output * weight).sum().backward()
        outputs.append(output.detach())
        gradients.append(x.grad)
    return outputs, gradients, [p.grad for p in norm.parameters()], norm


# Relative to the largest value; bfloat16 has 8 bits, and float32 near 1000 has 2⁻²⁴ · 1000 / 3 = 2e-5 of a deviation.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("double", 1e-12), ("average", 1e-12), ("untracked", 1e-12), ("far", 1e-4), ("half", 1e-2)]
)
def test_two_halves_are_normalised_as_the_joined_batch(cases, found, name, tolerance):
    def assert_close(got, wanted):
        assert (got.double() - wanted).abs().max() <= tolerance * wanted.abs().max()

    outputs, gradients, weight_gradients, norm = joined(cases[name])
    (first, first_weights, state, first_eval), (second, second_weights, other_state, second_eval) = found[name]
    for step in range(2):
        assert first[step][0].dtype == cases[name]["inputs"][0].dtype
        assert first[step][2] and second[step][2]  # channels-last stays
        assert_close(torch.cat([first[step][0], second[step][0]]), outputs[step])
        assert_close(torch.cat([first[step][1], second[step][1]]), gradients[step])
    for one, other, wanted in zip(first_weights, second_weights, weight_gradients, strict=True):
        assert_close(one + other, wanted)
    for key, wanted in norm.state_dict().items():
        assert torch.equal(state[key], other_state[key])
        assert_close(state[key], wanted) if wanted.is_floating_point() else torch.testing.assert_close(
            state[key], wanted
        )
    if name != "untracked":  # which takes batch statistics in evaluation too, of its own batch
        last = cases[name]["inputs"][-1].double()
        assert_close(torch.cat([first_eval, second_eval]), norm.eval()(last).detach())


def test_a_norm_of_another_kind_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(2), nn.BatchNorm1d(4))
    with pytest.raises(ConfigError, match=r"loop.sync_batch_norm on the CPU: 3 is BatchNorm1d, not BatchNorm2d"):
        synchronised(model, torch.device("cpu"))


def test_names_and_weights_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), with_values(nn.BatchNorm2d(4)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = synchronised(model, torch.device("cpu"))
    assert isinstance(after[1], AllReduceBatchNorm2d)
    assert list(after.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())


class Foreign(nn.Module):
    """Somebody's network, which recomputes a part of itself as timm's do, in either of torch's ways."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.Conv2d(4, 4, 1)),
            nn.Sequential(timm.layers.BatchNormAct2d(4), nn.Conv2d(4, 4, 1)),
            nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True), nn.Conv2d(4, 4, 1)),
            nn.Sequential(timm.layers.EvoNorm2dB0(4), nn.Conv2d(4, 4, 1)),
        )
        self.is_saving = False

    def set_grad_checkpointing(self, enable=True):
        self.is_saving = enable

    def forward(self, x):
        x = self.stem(x)
        return checkpoint_seq(self.blocks, x, use_reentrant=self.use_reentrant) if self.is_saving else self.blocks(x)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_any_norm_of_any_network_measures_once(use_reentrant):
    plain = Foreign(use_reentrant)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    twice = copy.deepcopy(saving)
    measure_once(saving)
    saving = copy.deepcopy(saving)  # as the moving average is made
    for _ in range(2):
        images = torch.randn(2, 3, 5, 5)
        for model in (plain, saving, twice):
            model(images).square().sum().backward()
    found, doubled = dict(saving.named_buffers()), dict(twice.named_buffers())
    assert len(found) == 10
    for name, value in plain.named_buffers():
        assert torch.equal(found[name], value), name
    moved = {name for name, value in plain.named_buffers() if not torch.equal(doubled[name], value)}
    assert moved >= {f"blocks.{index}.0.running_var" for index in (1, 2, 3)}  # without it
    for (name, wanted), got in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(wanted.grad, got.grad), name
