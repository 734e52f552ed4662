import math

import pytest
import torch
from torch import nn

import convattn
from convattn.explain.figures import as_picture
from convattn.explain.relative_field import draw_relative_fields, grid_distances, relative_receptive_field
from toys import build_toy


class LocalSelfAttention(nn.Module):
    """The queries and keys of SMT's attention, by its name; values that differ from the keys."""

    def __init__(self, dim, num_heads=1):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Conv2d(dim, dim, 1)
        self.key_value = nn.Conv2d(dim, 2 * dim, 1)

    def forward(self, x):
        return self.query(x) + self.key_value(x).chunk(2, 1)[1]


def attending(rows, num_heads=1):
    """Attention over a map whose channels are one-hot positions, from i to `rows[head][i]` alone; None: uniform."""
    count = len(next(row for row in rows if row is not None))
    block = LocalSelfAttention(count * num_heads, num_heads)
    nn.init.zeros_(block.query.weight)
    nn.init.zeros_(block.query.bias)
    nn.init.normal_(block.key_value.weight)  # the values' half
    nn.init.zeros_(block.key_value.bias)
    for head, row in enumerate(rows):
        part = slice(head * count, (head + 1) * count)
        block.key_value.weight.data[part, :, 0, 0] = torch.eye(count).repeat(1, num_heads)
        if row is not None:
            for position, target in enumerate(row):
                block.query.weight.data[head * count + target, position, 0, 0] = 1000.0
    return nn.Sequential(block)


def positions(height, width, num_heads=1):
    """(1, heads · N, H, W): channel n of the first N is 1 at position n."""
    maps = torch.eye(height * width).view(1, height * width, height, width)
    return torch.cat([maps, torch.zeros_like(maps).repeat(1, num_heads - 1, 1, 1)], 1) if num_heads > 1 else maps


def field(model, height, width, form="furthest", num_heads=1):
    found = relative_receptive_field(model, positions(height, width, num_heads), normalise=form, layer="0")
    assert found.blocks == ("0",)
    return found.heads[0]


def uniform(count):
    model = attending([[0] * count])
    nn.init.zeros_(model[0].query.weight)
    return model


@pytest.mark.parametrize(
    ("height", "width", "want"),
    [(2, 2, 0.6035533905932737), (1, 2, 1 / 2), (1, 4, 1 / 2), (1, 3, 5 / 9), (4, 1, 1 / 2)],
)
def test_uniform_attention_over_the_furthest(height, width, want):
    assert float(field(uniform(height * width), height, width)) == pytest.approx(want, abs=1e-6)
    assert (2 + math.sqrt(2)) / (4 * math.sqrt(2)) == pytest.approx(0.6035533905932737, abs=1e-15)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 5), (1, 4)])
def test_uniform_attention_over_uniform_attention(height, width):
    assert float(field(uniform(height * width), height, width, "uniform")) == pytest.approx(1, abs=1e-6)


def test_distances():
    assert float(grid_distances(14, 14).double().mean()) == pytest.approx(7.280764193235398, abs=1e-6)
    for count in (2, 3, 7):
        assert float(grid_distances(1, count).mean()) == pytest.approx((count**2 - 1) / (3 * count), abs=1e-6)
    assert grid_distances(2, 3)[0].tolist() == pytest.approx([0, 1, 2, 1, math.sqrt(2), math.sqrt(5)])
    assert grid_distances(2, 3, is_sequence=True)[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_attention_to_oneself_and_to_the_furthest():
    furthest = grid_distances(2, 3).argmax(1).tolist()
    for form in ("furthest", "sequence", "uniform"):
        assert float(field(attending([list(range(6))]), 2, 3, form)) == pytest.approx(0, abs=1e-6)
    assert float(field(attending([furthest]), 2, 3)) == pytest.approx(1, abs=1e-6)
    # to the right neighbour: the sequence knows one step in every row, the grid does not jump
    steps = [1, 2, 1, 4, 5, 4]
    reach = grid_distances(2, 3)
    want = (torch.ones(6) / reach.amax(1)).mean()
    assert float(field(attending([steps]), 2, 3)) == pytest.approx(float(want), abs=1e-6)
    sequence = (1 / torch.tensor([5.0, 4, 3, 3, 4, 5])).mean()
    assert float(field(attending([steps]), 2, 3, "sequence")) == pytest.approx(float(sequence), abs=1e-6)


def test_queries_ask_and_keys_answer():
    """From every position to the first: not the same as from the first to every other."""
    want = (grid_distances(1, 4)[:, 0] / grid_distances(1, 4).amax(1)).mean()
    assert float(field(attending([[0, 0, 0, 0]]), 1, 4)) == pytest.approx(float(want), abs=1e-6)


def test_heads_are_consecutive_channels():
    model = attending([list(range(4)), None], num_heads=2)
    heads = field(model, 2, 2, num_heads=2)
    assert heads.tolist() == pytest.approx([0, 0.6035533905932737], abs=1e-6)
    found = relative_receptive_field(model, positions(2, 2, 2).repeat(3, 1, 1, 1), layer="0")
    assert (found.images, found.heads[0].tolist()) == (3, pytest.approx(heads.tolist()))
    assert found.means.tolist() == pytest.approx([0.6035533905932737 / 2], abs=1e-6)
    assert found.deviations.tolist() == pytest.approx([0.6035533905932737 / 2], abs=1e-6)


def test_the_blocks_of_the_penultimate_stage_of_smt():
    model = build_toy("smt_nano", depths=(1, 1, 4, 1)).train()
    images, told = torch.randn(2, 3, 64, 64), []
    found = relative_receptive_field(model, images, on_image=told.append)
    assert found.blocks == ("stages.2.blocks.1.token_mixer", "stages.2.blocks.3.token_mixer")
    assert told == [1, 1]
    assert all(0 < float(mean) < 1 for mean in found.means)
    last = relative_receptive_field(model, images, layer=16)
    assert last.blocks == ("stages.3.blocks.0.token_mixer",)
    assert all(module.training for module in model.modules())
    half = build_toy("smt_nano", depths=(1, 1, 4, 1), stacking="half")
    both = {"alternate": found, "half": relative_receptive_field(half, images)}
    assert both["half"].blocks[-1] == "stages.2.blocks.3.token_mixer"
    assert as_picture(draw_relative_fields(both)).size == (540, 340)


def test_the_model_itself_attends_as_reckoned():
    """Zero queries in the model's own block make its attention uniform."""
    model = build_toy("smt_nano")
    block = model.stages[2].blocks[1].token_mixer
    nn.init.zeros_(block.query.weight)
    nn.init.zeros_(block.query.bias)
    found = relative_receptive_field(model, torch.randn(1, 3, 16, 16), normalise="furthest")
    assert found.heads[0].tolist() == pytest.approx([0.6035533905932737] * block.num_heads, abs=1e-6)


def test_wrong_words_and_models():
    model = build_toy("smt_nano")
    with pytest.raises(ValueError, match=r"^normalise 'far' is unknown; known: furthest, sequence, uniform$"):
        relative_receptive_field(model, torch.randn(1, 3, 32, 32), normalise="far")
    with pytest.raises(ValueError, match=r"^attention over a map of a single position has no distances; give larger"):
        relative_receptive_field(model, torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"^this SMT is fused and has no inner tensors for relative_receptive_field;"):
        relative_receptive_field(convattn.fuse(model), torch.randn(1, 3, 32, 32))
