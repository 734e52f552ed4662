"""Prepacked layers give the same numbers; what they cannot take is refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import convattn
from convattn.ops.linear import Linear2d
from toys import build_toy, relative_error


@pytest.mark.parametrize("size", [(32, 32), (37, 51)])
def test_agrees_with_the_fused_model(size):
    model = build_toy("smt_nano")
    images = torch.randn(2, 3, *size)
    packed = convattn.prepack(convattn.fuse(model), images)
    with torch.inference_mode():
        assert relative_error(packed(images), model(images)) < 1e-5
        other = torch.randn(1, 3, 41, 35)  # a shape it was not packed for
        assert relative_error(packed(other), model(other)) < 1e-5


def test_a_linear_layer_over_every_other_position():
    model = nn.Sequential(Linear2d(5, 7, stride=2), nn.ReLU()).eval()
    packed = convattn.prepack(model, torch.randn(2, 5, 9, 6))
    with torch.inference_mode():
        for size in ((9, 6), (1, 1), (4, 5)):
            images = torch.randn(2, 5, *size)
            assert relative_error(packed(images), model(images)) < 1e-5


def test_activations_become_part_of_the_kernel_only_where_they_follow():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.GELU("tanh"), nn.Flatten(), nn.Linear(72, 5)
    )
    images = torch.randn(2, 3, 5, 5)
    packed = convattn.prepack(model, images)
    assert isinstance(packed[1], nn.Identity)
    assert isinstance(packed[3], nn.GELU)  # the approximation is another function
    with torch.inference_mode():
        assert relative_error(packed(images), model(images)) < 1e-5


class _Loop(nn.Module):
    """Runs its sequence layer by layer, and the sum of what is in front of the activation and behind it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body[:1](x) + self.body[1](self.body[0](x))


def test_activations_stay_where_a_sequence_is_not_run_as_a_whole():
    model, images = _Loop(), torch.randn(1, 3, 9, 9)
    packed = convattn.prepack(model, images)
    with torch.inference_mode():
        assert relative_error(packed(images), model(images)) < 1e-5


def test_the_original_is_untouched():
    model = build_toy("smt_nano").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convattn.prepack(model.eval(), torch.randn(1, 3, 32, 32))
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)] == []
    assert not [module for module in model.modules() if module._forward_pre_hooks]


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match=r"torch.float64 on cpu; prepack takes float32 or bfloat16 on the CPU"):
        convattn.prepack(build_toy("smt_nano").double(), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["smt_nano", "cotnet_nano", "resnet18_das"])
def test_torchs_counter_sees_what_the_kernels_do(name):
    fused, images = convattn.fuse(build_toy(name)), torch.randn(2, 3, 64, 64)
    packed = convattn.prepack(fused, images)
    counts = []
    for model in (fused, packed):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    with pytest.raises(ValueError, match="a prepacked model runs only; to copy, count, fuse"):
        convattn.count(packed, (3, 64, 64))


def test_a_build_without_onednn_is_told(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"no oneDNN.*use the fused model"):
        convattn.prepack(build_toy("smt_nano"), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("take", [convattn.fuse, lambda model: convattn.prepack(model, torch.randn(1, 8, 9, 9))])
@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 1), Linear2d(8, 8)], ids=["convolution", "linear"])
def test_a_prepacked_model_is_not_taken_further(take, layer):
    packed = convattn.prepack(nn.Sequential(layer), torch.randn(1, 8, 9, 9))
    with pytest.raises(ValueError, match=r"a prepacked model runs only.*take the model that it was made from"):
        take(packed)


def test_a_prepacked_model_is_not_exported(tmp_path):
    packed = convattn.prepack(nn.Sequential(nn.Conv2d(3, 8, 1)), torch.randn(1, 3, 9, 9))
    with pytest.raises(ValueError, match="a prepacked model runs only"):
        convattn.export(packed, tmp_path / "packed.pt2", input_size=(9, 9))
    assert list(tmp_path.iterdir()) == []


class _PartUsed(nn.Module):
    """Calls a layer of its sequence by itself too, or reads its weight."""

    def __init__(self, reads_weight: bool):
        super().__init__()
        self.body, self.reads_weight = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)), reads_weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * self.body[0].weight.mean() if self.reads_weight else y + self.body[0](x)


@pytest.mark.parametrize(
    ("reads_weight", "what"), [(False, r"gives other numbers \(relative error .+\)"), (True, r"does not run \(.+\)")]
)
def test_a_model_that_packing_would_change_is_refused(reads_weight, what):
    with pytest.raises(
        ValueError, match=rf"the model {what}: it uses a layer otherwise.*run the fused model"
    ) as caught:
        convattn.prepack(_PartUsed(reads_weight), torch.randn(1, 3, 9, 9))
    assert "\n" not in str(caught.value)
