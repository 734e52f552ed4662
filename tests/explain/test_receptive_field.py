import pytest
import torch
import torchvision
from torch import nn

from convattn.explain.figures import as_picture
from convattn.explain.receptive_field import (
    ReceptiveField,
    areas_table,
    draw_receptive_fields,
    effective_receptive_field,
)
from toys import build_toy

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


class Maps(nn.Module):
    """Convolutions whose last map is the output."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def ones(*shape, **options):
    conv = nn.Conv2d(*shape, bias=False, **options)
    nn.init.ones_(conv.weight)
    return conv


def test_one_convolution():
    field = effective_receptive_field(Maps(ones(3, 4, 9, padding=4)), torch.ones(1, 3, 33, 33), "layers")
    want = torch.zeros(33, 33)
    want[12:21, 12:21] = 12
    assert torch.equal(field.contributions, want.double())
    areas = field.areas(THRESHOLDS)
    assert [area.side for area in areas] == [5, 5, 7, 9]
    assert [area.share for area in areas] == [side**2 / 1089 for side in (5, 5, 7, 9)]
    assert field.maximum == 12


def test_two_convolutions():
    model = Maps(ones(1, 1, 3, padding=1), ones(1, 1, 3, padding=1))
    field = effective_receptive_field(model, torch.ones(1, 1, 33, 33), "layers")
    profile = torch.tensor([1.0, 2, 3, 2, 1], dtype=torch.float64)
    want = torch.zeros(33, 33, dtype=torch.float64)
    want[14:19, 14:19] = profile[:, None] * profile
    assert torch.equal(field.contributions, want)
    assert [area.side for area in field.areas(THRESHOLDS)] == [3, 3, 5, 5]


def test_a_stride_and_which_position_is_the_middle():
    field = effective_receptive_field(Maps(ones(1, 1, 3, stride=2, padding=1)), torch.ones(1, 1, 32, 32), "layers")
    rows, columns = field.contributions.nonzero().T
    assert sorted({*rows.tolist()}) == sorted({*columns.tolist()}) == [15, 16, 17]


def test_rows_are_rows():
    model = Maps(ones(1, 1, (1, 5), padding=(0, 2)))
    rows, columns = effective_receptive_field(model, torch.ones(1, 1, 16, 24), "layers").contributions.nonzero().T
    assert {*rows.tolist()} == {8}
    assert sorted({*columns.tolist()}) == [10, 11, 12, 13, 14]


def test_what_is_negative_counts_for_nothing():
    model = Maps(ones(1, 1, 1))
    model.layers[0].weight.data.neg_()
    field = effective_receptive_field(model, torch.ones(1, 1, 9, 9), "layers")  # the output is below 0
    assert not field.contributions.any()
    assert field.areas() == [type(area)(area.threshold, None, None) for area in field.areas()]
    below = Maps(nn.Conv2d(1, 1, 1))  # its gradient is positive, its output is not
    nn.init.ones_(below.layers[0].weight)
    nn.init.constant_(below.layers[0].bias, -10.0)
    assert not effective_receptive_field(below, torch.ones(1, 1, 9, 9), "layers").contributions.any()
    mixed = Maps(ones(1, 1, 3, padding=1))
    mixed.layers[0].weight.data[0, 0, 0, 0] = -1  # a negative gradient of a positive output
    assert effective_receptive_field(mixed, torch.ones(1, 1, 9, 9), "layers").contributions.sum() == 8


def test_means_over_images_and_those_that_are_no_numbers():
    class Scaled(nn.Module):
        def forward(self, x):
            return x * x  # gradient 2x

    images = torch.ones(3, 1, 5, 5) * torch.tensor([1.0, 3.0, float("nan")]).view(3, 1, 1, 1)
    model, told = nn.Sequential(Scaled()), []
    field = effective_receptive_field(model, images, "0", on_image=told.append)
    assert (field.images, field.skipped, told) == (2, 1, [1, 1, 1])
    assert field.contributions[2, 2] == (2 + 6) / 2
    again = effective_receptive_field(model, iter(images.split(2)), "0")
    assert torch.equal(again.contributions, field.contributions)
    with pytest.raises(ValueError, match=r"^no image to take the mean over \(1 with gradients that are no numbers\)$"):
        effective_receptive_field(model, images[2:], "0")


@pytest.mark.parametrize("name", ["smt_nano", "nextvit_nano", "resnet18_das"])
def test_a_model_as_it_is_and_as_it_was(name):
    model = build_toy(name).train()
    field = effective_receptive_field(model, torch.randn(1, 3, 64, 64))
    assert field.contributions.shape == (64, 64)
    assert field.contributions.any()
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_torchvision_by_the_last_level():
    model = torchvision.models.resnet18(num_classes=2).eval()
    assert effective_receptive_field(model, torch.randn(1, 3, 64, 64)).contributions.any()


def test_the_title_says_how_little_was_looked_at():
    field = ReceptiveField(torch.ones(64, 48), 1)
    assert field.title() == "1 image at 64 x 48, below the recipe's 1024"
    assert ReceptiveField(torch.ones(1024, 1024), 50).title() == "50 images at 1024 x 1024"
    table = areas_table({"a": field})
    assert table.rows == (("a", "25 px, 20.3 %", "31 px, 31.3 %", "41 px, 54.7 %", "-", "1"),)
    assert table.note.endswith(f"with care. {field.title()}.")
    picture = as_picture(draw_receptive_fields({"a": field, "b": field}))
    assert picture.size[0] > picture.size[1]
