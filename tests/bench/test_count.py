"""Counts against figures worked by hand and the published ones."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import convattn
from convattn.backbones.costs import COSTS, OTHER_COSTS
from convattn.backbones.registry import image_size_of
from convattn.mixers.registry import create_mixer
from convattn.weights.records import OFFICIAL_WEIGHTS, PUBLISHED_RESULTS
from toys import build_toy

# Multiply-adds counted for the variants at their own size, in G, and of these what is no layer: the products inside
# attention, and kernels.
MACS = {
    "cotnet_50": (3.243, 0.0124),
    "cotnet_101": (6.050, 0.0201),
    "cotnext_50": (4.255, 0.0186),
    "cotnext_101": (8.073, 0.0301),
    "se_cotnetd_50": (4.048, 0.0020),
    "se_cotnetd_101": (8.436, 0.0061),
    "se_cotnetd_152": (16.846, 0.0142),
    "mobilenetv2_das": (0.3481, 0.0254),
    "resnet18_das": (1.935, 0.0903),
    "resnet34_das": (3.785, 0.0903),
    "resnet50_das": (5.814, 1.4749),
    "resnet101_das": (9.527, 1.4749),
    "groupmixformer_mobile": (1.333, 0.0153),
    "groupmixformer_tiny": (3.686, 0.0425),
    "groupmixformer_small": (5.133, 0.0610),
    "groupmixformer_base": (17.428, 0.2714),
    "groupmixformer_large": (38.068, 0.4997),
    "nextvit_small": (5.794, 0.033),
    "nextvit_base": (8.274, 0.048),
    "nextvit_large": (10.753, 0.063),
    "smt_tiny": (2.461, 0.081),
    "smt_small": (4.839, 0.182),
    "smt_base": (7.966, 0.280),
    "smt_large": (17.907, 0.428),
}

# The same of other sizes.
MACS_AT = {
    ("smt_large", 384): 55.06,
    ("nextvit_small", 384): 17.216,
    ("nextvit_base", 384): 24.586,
    ("nextvit_large", 384): 31.957,
}


@cache
def on_meta(name: str, num_classes: int = 1000) -> nn.Module:
    """The whole model without memory, built once."""
    with torch.device("meta"):
        return convattn.create_model(name, num_classes=num_classes)


# Deeper forms of another, whose counts take seconds: they find no other fault, and run with the slow tests.
DEEPER = {
    *("cotnet_101", "cotnext_101", "se_cotnetd_101", "se_cotnetd_152", "resnet34_das", "resnet101_das"),
    *("groupmixformer_small", "groupmixformer_base", "groupmixformer_large"),
    *("nextvit_base", "nextvit_large", "smt_small", "smt_base"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEEPER)) for n in MACS])
def test_variants_have_their_multiply_adds(name):
    model = on_meta(name)
    total, attention = MACS[name]
    full = convattn.count(model)
    assert full.macs / 1e9 == pytest.approx(total, rel=1e-3)
    layers = convattn.count(model, style="published").macs
    assert (full.macs - layers) / 1e9 == pytest.approx(attention, abs=6e-4)
    assert full.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert COSTS[name] == (full.parameters, full.macs)


def test_the_table_of_costs_has_every_model():
    assert COSTS.keys() == set(convattn.list_models())


@pytest.mark.parametrize("name", sorted(COSTS.keys() - MACS.keys()))
def test_the_table_of_costs_is_what_is_counted(name):
    counted = convattn.count(on_meta(name))
    assert COSTS[name] == (counted.parameters, counted.macs)


@pytest.mark.parametrize(
    ("name", "size", "classes"),  # the largest takes eight seconds to count; the others go the same way
    [pytest.param(*key, marks=[pytest.mark.slow] * (key[0] == "groupmixformer_large")) for key in OTHER_COSTS],
)
def test_other_sizes_and_classes_cost_what_is_counted(name, size, classes):
    counted = convattn.count(on_meta(name, classes), (3, size, size))
    assert OTHER_COSTS[name, size, classes] == (counted.parameters, counted.macs)
    if (name, size) in MACS_AT:
        assert counted.macs / 1e9 == pytest.approx(MACS_AT[name, size], rel=1e-3)


def test_all_that_was_published_has_its_cost():
    records = [(name, record) for name, records in OFFICIAL_WEIGHTS.items() for record in records]
    sizes = {(name, record.image_size, record.num_classes) for name, record in records}
    sizes |= {(name, record.image_size, 1000) for name, records in PUBLISHED_RESULTS.items() for record in records}
    own = {(name, image_size_of(name), 1000) for name in convattn.list_models()}
    assert OTHER_COSTS.keys() == sizes - own


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("resnet18_das", 11_815_598, 1.845),
        pytest.param("resnet34_das", 21_923_758, 3.695, marks=pytest.mark.slow),
        ("resnet50_das", 26_897_326, 4.339),
        pytest.param("resnet101_das", 45_889_454, 8.052, marks=pytest.mark.slow),
        ("mobilenetv2_das", 3_575_441, 0.3227),
    ],
)
@pytest.mark.parametrize("sampling", ["auto", "grid_sample", "rows"])
def test_published_style_passes_over_deformable_kernels_and_their_weights(name, parameters, macs, sampling):
    with torch.device("meta"):
        model = convattn.create_model(name, sampling=sampling)
    published, full = convattn.count(model, style="published"), convattn.count(model)
    assert published.parameters == parameters
    assert published.macs / 1e9 == pytest.approx(macs, abs=6e-4 if macs > 1 else 6e-5)
    assert full.macs / 1e9 == pytest.approx(MACS[name][0], abs=6e-4 if macs > 1 else 6e-5)  # however it is computed
    for counted in (published, full):
        assert sum(row.macs for row in counted.rows) == counted.macs
        assert sum(row.parameters for row in counted.rows) == counted.parameters
    assert sum(parameter.numel() for parameter in model.parameters()) == full.parameters  # left as it was


def test_a_case_worked_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    counted = convattn.count(model, (3, 8, 8))
    assert counted.parameters == 3 * 8 * 9 + 128 * 10 + 10
    assert counted.macs == 3 * 8 * 9 * 16 + 128 * 10
    assert counted.activations == 8 * 16 + 10


def test_a_module_that_returns_its_parameter_is_counted():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, 8, 4, 4))

        def forward(self):
            return self.weight

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.position = nn.Conv2d(3, 8, 1, bias=False), Position()

        def forward(self, images):
            return self.conv(images) + self.position()

    model = Net()
    counted = convattn.count(model, (3, 4, 4))
    assert (counted.parameters, counted.macs) == (24 + 128, 24 * 16)
    assert model.position.weight.requires_grad


def test_rows_add_up_and_the_model_is_untouched():
    model = build_toy("smt_nano").train()
    counted = convattn.count(model, (3, 33, 47))
    assert sum(row.macs for row in counted.rows) == counted.macs
    assert sum(row.parameters for row in counted.rows) == counted.parameters
    assert [row.name for row in counted.rows] == ["stem", *[f"stages.{i}" for i in range(4)], "head"]
    with torch.no_grad():
        levels = model.eval().forward_intermediates(torch.randn(1, 3, 33, 47), intermediates_only=True)
    assert [row.output_shape for row in counted.rows[1:5]] == [tuple(level.shape) for level in levels]
    assert next(model.parameters()).device.type == "cpu"


def test_fusing_does_not_add_parameters_to_attention_or_change_its_products():
    model = build_toy("smt_nano", stacking="attention")
    fused, plain = convattn.count(convattn.fuse(model), (3, 32, 32)), convattn.count(model, (3, 32, 32))
    assert fused.macs >= plain.macs  # kernels padded to the largest
    assert fused.rows[4].macs == plain.rows[4].macs  # the last stage is attention alone


def test_bad_requests_are_refused():
    model = build_toy("smt_nano")
    with pytest.raises(ValueError, match="style 'thop' is unknown; choose full or published"):
        convattn.count(model, style="thop")
    with pytest.raises(ValueError, match=r"input_size \(32, 0\) must be a side, \(height, width\) or"):
        convattn.count(model, (32, 0))


def test_the_channels_are_those_that_the_model_takes():
    assert convattn.count(build_toy("smt_nano", in_chans=1)) == convattn.count(
        build_toy("smt_nano", in_chans=1), (1, 32, 32)
    )
    with pytest.raises(ValueError, match=r"Conv2d does not say what input it expects; give input_size: a side, "):
        convattn.count(nn.Conv2d(3, 4, 1))


class _Twice(nn.Module):
    """A block with a kernel of its own and a convolution that run twice; two layers of one weight."""

    def __init__(self, *, is_shared: bool):
        super().__init__()
        build = [lambda: create_mixer("cot", 16), lambda: nn.Conv2d(16, 16, 1), lambda: nn.Conv2d(16, 16, 3)]
        self.first = nn.ModuleList(layer() for layer in build)
        self.second = self.first if is_shared else nn.ModuleList(layer() for layer in build)
        self.ends = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(2))
        if is_shared:
            self.ends[1].weight = self.ends[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.first, *self.second, *self.ends):
            x = layer(x)
        return x


@pytest.mark.parametrize("style", ["full", "published"])
def test_what_is_shared_is_held_once_and_counted_as_often_as_it_runs(style):
    shared, apart = _Twice(is_shared=True), _Twice(is_shared=False)
    shared.first[0].register_forward_hook(lambda module, inputs, output: float(output.sum()))  # reads values
    counts = [convattn.count(model, (16, 9, 9), style) for model in (shared, apart)]
    assert counts[0].macs == counts[1].macs and counts[0].activations == counts[1].activations
    if style == "full":
        assert counts[0].parameters == sum(parameter.numel() for parameter in shared.parameters())
