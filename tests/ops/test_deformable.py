"""Deformable convolution: every form against loops over single pixels, and the cases that have a closed form."""

import math

import pytest
import torch
import torch.nn.functional as F

from convattn.ops.deformable import deformable_conv2d, deformable_conv2d_reference, sample_displaced
from toys import relative_error

every_form = pytest.mark.parametrize("sampling", ["auto", "rows", "torchvision", "grid_sample"])

# stride, padding, dilation, groups, offset groups
GEOMETRIES = [(1, 1, 1, 1, 1), (2, 0, 2, 2, 1), (1, 2, 1, 1, 2), (2, 1, 1, 4, 2), (1, 1, 2, 4, 4)]


def out_size(size, kernel, stride, padding, dilation):
    return tuple((s + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for s, k in zip(size, kernel, strict=True))


def case(stride=1, padding=1, dilation=1, groups=1, offset_groups=1, *, size=(6, 5), kernel=(3, 3), spread=3.0):
    """A map, offsets, kernel, mask and bias in float64, and the geometry as keywords."""
    height, width = out_size(size, kernel, stride, padding, dilation)
    taps = kernel[0] * kernel[1]
    tensors = (
        torch.randn(2, 4, *size, dtype=torch.float64),
        spread * torch.randn(2, 2 * offset_groups * taps, height, width, dtype=torch.float64),
        torch.randn(8, 4 // groups, *kernel, dtype=torch.float64),
        torch.rand(2, offset_groups * taps, height, width, dtype=torch.float64),
        torch.randn(8, dtype=torch.float64),
    )
    return tensors, dict(stride=stride, padding=padding, dilation=dilation)


def between_pixels(tensors):
    """The tensors of a case as leaves, the offsets at least a fifth of a pixel from whole numbers."""
    x, offset, *others = tensors
    offset = offset.floor() + 0.2 + 0.6 * torch.rand_like(offset)
    return [tensor.clone().requires_grad_() for tensor in (x, offset, *others)]


def bilinear(image, y, x):
    """One channel (H, W) read at a real position, a missing neighbour counting as zero."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(image[row, column])
    return total


def by_loops(x, offset, weight, mask, bias, *, stride, padding, dilation):
    """The definition, pixel by pixel: torchvision's order of channels, dy before dx, offset groups outermost."""
    (out_channels, group_width, _, kernel_w), taps = weight.shape, weight.shape[2] * weight.shape[3]
    offset_width = x.shape[1] // (offset.shape[1] // (2 * taps))
    out = torch.zeros(x.shape[0], out_channels, *offset.shape[2:], dtype=torch.float64)
    for n in range(x.shape[0]):
        for o in range(out_channels):
            first = o // (out_channels // (x.shape[1] // group_width)) * group_width
            for i in range(offset.shape[2]):
                for j in range(offset.shape[3]):
                    total = float(bias[o])
                    for c in range(group_width):
                        for k in range(taps):
                            a, b = divmod(k, kernel_w)
                            own = (first + c) // offset_width * taps + k
                            y = i * stride - padding + a * dilation + float(offset[n, 2 * own, i, j])
                            z = j * stride - padding + b * dilation + float(offset[n, 2 * own + 1, i, j])
                            value = bilinear(x[n, first + c], y, z)
                            total += float(mask[n, own, i, j]) * float(weight[o, c, a, b]) * value
                    out[n, o, i, j] = total
    return out


@pytest.mark.parametrize("geometry", [(1, 1, 1, 1, 1), (2, 1, 2, 2, 2)])
def test_reference_equals_loops_over_pixels(geometry):
    (x, offset, weight, mask, bias), where = case(*geometry, size=(5, 6), kernel=(3, 2))
    small = (x[:1], offset[:1], weight[::2], mask[:1], bias[::2])
    want = by_loops(*small, **where)
    assert relative_error(deformable_conv2d_reference(*small, **where), want) < 1e-13


@every_form
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_form_equals_the_reference(sampling, geometry):
    tensors, where = case(*geometry)
    want = deformable_conv2d_reference(*tensors, **where)
    assert relative_error(deformable_conv2d(*tensors, **where, sampling=sampling), want) < 1e-12
    without = deformable_conv2d(*tensors[:3], **where, sampling=sampling)
    assert relative_error(without, deformable_conv2d_reference(*tensors[:3], **where)) < 1e-12


@every_form
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_no_displacement_is_an_ordinary_convolution(sampling, groups):
    (x, offset, weight, mask, bias), where = case(2, 1, 1, groups)
    offset.zero_()
    got = deformable_conv2d(x, offset, weight, torch.ones_like(mask), bias, **where, sampling=sampling)
    assert relative_error(got, F.conv2d(x, weight, bias, groups=groups, **where)) < 1e-12


@every_form
@pytest.mark.parametrize(("dy", "dx"), [(0, 1), (2, 0), (-1, 3), (-7, 0)])
def test_a_whole_number_of_pixels_is_a_convolution_of_the_shifted_map(sampling, dy, dx):
    (x, offset, weight, _, bias), _ = case(padding=0)
    offset[:, 0::2], offset[:, 1::2] = dy, dx
    pad = 8
    shifted = F.pad(x, (pad,) * 4)[:, :, pad + dy : pad + dy + 6, pad + dx : pad + dx + 5]  # zero from outside
    got = deformable_conv2d(x, offset, weight, None, bias, sampling=sampling)
    assert relative_error(got, F.conv2d(shifted, weight, bias)) < 1e-12


@every_form
@pytest.mark.parametrize(
    ("y", "share"), [(-1.0, 0), (-0.5, 0.5), (0.0, 1), (3.25, 0.75), (4.0, 0), (-9.0, 0), (1e9, 0)]
)
def test_outside_the_map_is_zero_without_clamping(sampling, y, share):
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    offset = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    offset[:, 0] = y - torch.arange(4.0)[:, None]
    got = deformable_conv2d(x, offset, torch.ones(1, 1, 1, 1, dtype=torch.float64), sampling=sampling)
    assert torch.allclose(got, torch.full_like(got, share), atol=1e-12)


def test_the_mask_weighs_its_own_tap():
    (x, offset, weight, mask, _), where = case()
    got = [
        deformable_conv2d(x, offset, weight, (torch.arange(9) == k).double()[:, None, None].expand_as(mask), **where)
        for k in range(9)
    ]
    assert relative_error(sum(got), deformable_conv2d(x, offset, weight, **where)) < 1e-12


@every_form
@pytest.mark.parametrize("geometry", [(1, 1, 1, 1, 1), (2, 1, 2, 2, 2)])
def test_gradients_away_from_whole_positions(sampling, geometry):
    # (At a whole position the bilinear kernel has a kink, and finite differences across it are no derivative.)
    tensors, where = case(*geometry, size=(5, 5), kernel=(2, 2))
    tensors = between_pixels(tensors)
    assert torch.autograd.gradcheck(
        lambda *t: deformable_conv2d(*t, **where, sampling=sampling), tensors, fast_mode=True
    )


@every_form
def test_gradients_of_all_forms_agree(sampling):
    tensors, where = case(spread=2.3)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    want = torch.autograd.grad(deformable_conv2d_reference(*tensors, **where).square().sum(), tensors)
    got = torch.autograd.grad(deformable_conv2d(*tensors, **where, sampling=sampling).square().sum(), tensors)
    assert all(relative_error(a, b) < 1e-11 for a, b in zip(got, want, strict=True))


@every_form
def test_offsets_learn_behind_a_frozen_map(sampling):
    (x, offset, weight, mask, bias), where = case()
    offset.requires_grad_()
    got = deformable_conv2d(x, offset, weight, mask, bias, **where, sampling=sampling)
    (gradient,) = torch.autograd.grad(got.sum(), offset)
    (want,) = torch.autograd.grad(deformable_conv2d_reference(x, offset, weight, mask, bias, **where).sum(), offset)
    assert want.any() and relative_error(gradient, want) < 1e-11


def test_grid_sampling_has_second_derivatives():
    tensors, where = case(size=(4, 4), kernel=(2, 2), padding=0)
    tensors = between_pixels(tensors)
    assert torch.autograd.gradgradcheck(
        lambda *t: deformable_conv2d(*t, **where, sampling="grid_sample"), tensors, fast_mode=True
    )


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_keeps_the_type_and_the_place(sampling, dtype):
    # 300 pixels away bfloat16 knows only every second pixel; the positions must not be rounded to that.
    x = torch.arange(320.0).expand(1, 1, 2, 320).sub(160).div(160).to(dtype)
    offset = torch.zeros(1, 2, 2, 320, dtype=dtype)
    offset[:, 1] = 0.5
    got = deformable_conv2d(x, offset, torch.ones(1, 1, 1, 1, dtype=dtype), sampling=sampling)
    want = deformable_conv2d_reference(x.double(), offset.double(), torch.ones(1, 1, 1, 1, dtype=torch.float64))
    assert got.dtype == dtype
    assert relative_error(got, want) < (1e-4 if dtype == torch.float32 else 0.01)


@every_form
def test_under_autocast(sampling):
    tensors, where = case()
    tensors = [tensor.float() for tensor in tensors]
    want = deformable_conv2d(*tensors, **where)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(deformable_conv2d(*tensors, **where, sampling=sampling), want) < 0.02


@every_form
def test_channels_last_gives_the_same(sampling):
    tensors, where = case()
    moved = [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    want = deformable_conv2d(*tensors, **where)
    assert relative_error(deformable_conv2d(*moved, **where, sampling=sampling), want) < 1e-12


@pytest.mark.parametrize("sampling", ["rows", "grid_sample", "torchvision"])
def test_runs_on_the_meta_device(sampling):
    (x, offset, weight, mask, _), where = case()
    meta = [t.to("meta") for t in (x, offset, weight, mask)]
    assert deformable_conv2d(*meta, **where, sampling=sampling).shape == (2, 8, 6, 5)


def test_a_sample_displaced_by_whole_pixels_is_the_shifted_map():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    offset = torch.tensor([1.0, -2.0], dtype=torch.float64)[:, None, None].expand(2, 2, 5, 6)
    want = F.pad(x, (2, 0, 0, 1))[:, :, 1:, :6]
    assert relative_error(sample_displaced(x, offset), want) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(2, 3, 6, 5)), r"map of 3 channels does not fit a weight of shape \(8, 4, 3, 3\)"),
        (dict(offset=torch.zeros(2, 17, 6, 5)), "offset has 17 channels; a 3x3 kernel needs 18 for each"),
        (dict(offset=torch.zeros(2, 54, 6, 5)), "offset has 54 channels; .* whose number divides 4"),
        (dict(offset=torch.zeros(2, 18, 5, 5)), r"offset of size \(5, 5\) does not fit an output of \(6, 5\)"),
        (dict(mask=torch.zeros(2, 8, 6, 5)), r"mask of shape \(2, 8, 6, 5\) should be \(2, 9, 6, 5\)"),
        (dict(sampling="nearest"), "sampling 'nearest' is unknown; choose one of auto, rows, torchvision, grid_sample"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(change, message):
    (x, offset, weight, mask, _), where = case()
    with pytest.raises(ValueError, match=message):
        deformable_conv2d(**{**dict(x=x, offset=offset, weight=weight, mask=mask), **where, **change})
