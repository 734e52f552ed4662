import pytest
import torch
from PIL import Image
from torch import nn

import convattn
from convattn.explain.captures import captures
from convattn.explain.figures import as_picture
from convattn.explain.gates import arrow_scale, draw_offsets, draw_points, gate_maps, sampling_points
from convattn.mixers.deformable_gate import DeformableGate
from toys import build_toy

IMAGES = torch.linspace(-2, 2, 2 * 3 * 64 * 64).view(2, 3, 64, 64).sin()


def alone(**options):
    """A network of one gate on a map of 16 channels, an eighth of the image."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), DeformableGate(16, **options)).eval()


def test_a_fresh_gate_of_the_paper():
    model, images = alone(), torch.randn(4, 3, 128, 128)
    points = sampling_points(model, images)["1"]
    assert not points.offsets.any()
    assert torch.equal(points.weights, torch.full_like(points.weights, 0.5))
    gate = gate_maps(model, images)["1"]
    assert gate.shape == (4, 16, 16, 16)
    assert float(gate.mean()) == pytest.approx(0.50, abs=0.005)
    assert float(gate.std()) == pytest.approx(0.21, abs=0.005)


def test_an_identity_gate():
    model = alone(init="identity")
    gate = gate_maps(model, IMAGES)["1"]
    assert torch.full((), 4.0, dtype=torch.float64).sigmoid() == 0.9820137900379085
    torch.testing.assert_close(gate, torch.ones_like(gate))
    model[1].gain = 1.0
    torch.testing.assert_close(gate_maps(model, IMAGES)["1"], torch.full_like(gate, 0.9820137900379085))
    with captures(fresh := alone(init="identity"), ["1"], ["1"]) as kept, torch.no_grad():
        fresh(IMAGES)
    torch.testing.assert_close(kept.outputs["1"], kept.inputs["1"])


def test_the_gate_is_what_the_map_is_multiplied_by():
    model = build_toy("resnet18_das").train()
    gates = gate_maps(model, IMAGES)
    assert [*gates] == ["layer1.1", "layer2.1", "layer3.2", "layer4.1"]
    with captures(model, [*gates], [*gates]) as kept, torch.no_grad():
        model(IMAGES)
    for name, gate in gates.items():
        torch.testing.assert_close(kept.outputs[name], kept.inputs[name] * gate)
    assert all(module.training for module in model.modules())


def test_a_gate_that_is_attached():
    model = convattn.attach(convattn.create_model("timm:resnet18", num_classes=2), "das", where="stages", init="paper")
    names = [*gate_maps(model, IMAGES, [16])]
    assert len(names) == 1
    assert names[0].startswith("layer3")
    assert names[0].endswith(".attached.mixer")


def moved(dy, dx):
    model = alone()
    offset = model[1].mixer.offset
    offset.bias.data[0:18:2], offset.bias.data[1:18:2] = dy, dx
    return model


def test_all_points_one_row_lower():
    still, lower = (sampling_points(model, IMAGES)["1"] for model in (moved(0.0, 0.0), moved(1.0, 0.0)))
    assert torch.equal(lower.mean_offsets(), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(2, 2, 8, 8))
    assert lower.stride == (8, 8)
    centre = (3 + 0.5) * 8 - 0.5
    want = [[centre + 8 * dx, centre + 8 * dy] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert still.of(3, 3).tolist() == want  # row by row, x first
    assert lower.of(3, 3).tolist() == [[x, y + 8] for x, y in want]
    assert lower.of(3, 3).tolist() == still.of(4, 3).tolist()
    right = sampling_points(moved(0.0, 0.5), IMAGES)["1"]
    assert right.of(3, 3).tolist() == [[x + 4, y] for x, y in want]


def test_the_mean_offset_counts_taps_by_their_weights():
    model = moved(0.0, 0.0)
    bias = model[1].mixer.offset.bias.data
    bias[1], bias[18:] = 3.0, -50.0  # dx of the first tap; no tap counts
    bias[18] = 50.0  # but the first
    points = sampling_points(model, IMAGES)["1"]
    torch.testing.assert_close(points.mean_offsets(), torch.tensor([0.0, 3.0]).view(1, 2, 1, 1).expand(2, 2, 8, 8))


def test_points_are_where_the_convolution_reads():
    """A map with one bright element: the taps that read it are those whose points lie there."""
    model = moved(1.0, -1.0)
    mixer = model[1].mixer
    nn.init.ones_(mixer.weight)
    bright = torch.zeros(1, mixer.offset.in_channels, 8, 8)
    bright[..., 5, 2] = 1
    with torch.no_grad():
        seen = mixer(bright)[0, 0] > 0
    points = sampling_points(model, IMAGES[:1])["1"]
    for row in range(8):
        for column in range(8):
            on_map = [((x + 0.5) / 8 - 0.5, (y + 0.5) / 8 - 0.5) for x, y in points.of(row, column).tolist()]
            assert bool(seen[row, column]) == ((2, 5) in on_map)


@pytest.mark.parametrize("options", [dict(modulated=False), dict(mixer="deform_dw"), dict(kernel_size=5)])
def test_other_gates(options):
    points = sampling_points(alone(**options), IMAGES)["1"]
    taps = options.get("kernel_size", 3) ** 2
    assert points.offsets.shape == (2, taps, 2, 8, 8)
    assert (points.weights == 1).all() == ("modulated" in options)
    assert points.of(0, 0).shape == (taps, 2)


@pytest.mark.parametrize(("dx", "times"), [(0.0, 1), (0.125, 8), (0.4, 2), (3.0, 1)])
def test_short_arrows_are_enlarged(dx, times):
    assert arrow_scale(sampling_points(moved(0.0, dx), IMAGES)["1"]) == times


def test_pictures():
    points = sampling_points(build_toy("resnet18_das"), IMAGES)["layer2.1"]
    picture = Image.new("RGB", (64, 64), "grey")
    assert as_picture(draw_offsets(points, picture)).size == (420, 420)
    drawn = draw_points(points, picture, 2, 5)
    assert drawn.size == (384, 384)
    x, y = (int((place + 0.5) * 6) for place in points.of(2, 5).tolist()[0])
    assert drawn.getpixel((x, y)) == (255, 140, 0)


def test_what_there_is_not():
    with pytest.raises(ValueError, match=r"^no gate here has a deformable convolution"):
        sampling_points(alone(mixer="dwsep"), IMAGES)
    with pytest.raises(ValueError, match=r"^these blocks use the layers of the gate without gating \(gate=False\)"):
        gate_maps(alone(gate=False), IMAGES)
    with pytest.raises(ValueError, match=r"^position 8, 0 is off the map of 1, which is 8 x 8$"):
        sampling_points(alone(), IMAGES)["1"].of(8, 0)
    with pytest.raises(
        ValueError, match=r"^this DASResNet is fused and has no inner tensors for gate_maps; give the unfused"
    ):
        gate_maps(convattn.fuse(build_toy("resnet18_das")), IMAGES)
