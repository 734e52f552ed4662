import pytest
import torch

from convattn.ops.deformable_attention import deformable_attention, deformable_attention_reference
from toys import relative_error

SIZES = [(5, 7), (3, 3), (1, 2)]
SAMPLINGS = ["rows", "grid_sample"]


def drawn(batch=2, queries=6, heads=2, channels=4, points=3, dtype=torch.float64):
    """Values, locations inside and outside of the levels, weights."""
    generator = torch.Generator().manual_seed(0)
    pixels = sum(height * width for height, width in SIZES)
    value = torch.randn(batch, pixels, heads, channels, generator=generator, dtype=torch.float64)
    places = torch.rand(batch, queries, heads, len(SIZES), points, 2, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, queries, heads, len(SIZES) * points, generator=generator, dtype=torch.float64)
    weights = logits.softmax(-1).unflatten(-1, (len(SIZES), points))
    return [each.to(dtype) for each in (value, 1.6 * places - 0.3, weights)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_it_is_the_formula_with_its_gradients(sampling):
    given = [each.requires_grad_() for each in drawn()]
    value, places, weights = given
    got, want = (
        deformable_attention(value, SIZES, places, weights, sampling=sampling),
        deformable_attention_reference(value, SIZES, places, weights),
    )
    assert relative_error(got, want) < 1e-12
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad(out, given, upstream) for out in (got, want)), strict=True):
        assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_gradients_are_those_of_differences(sampling):
    given = [each.requires_grad_() for each in drawn(batch=1, queries=2, channels=2, points=2)]
    assert torch.autograd.gradcheck(lambda v, p, w: deformable_attention(v, SIZES, p, w, sampling=sampling), given)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_places(sampling, dtype):
    value, places, weights = drawn()
    got = deformable_attention(value.to(dtype), SIZES, places, weights, sampling=sampling)
    assert got.dtype is dtype
    want = deformable_attention_reference(value.to(dtype).double(), SIZES, places, weights)
    assert relative_error(got.double(), want) < 1e-2


def test_a_place_in_the_middle_of_a_pixel_reads_it_and_half_a_pixel_outside_reads_half():
    value = torch.arange(1.0, 5).view(1, 4, 1, 1)  # a level of 2 x 2
    places = torch.tensor([[0.25, 0.25], [0.75, 0.75], [0.5, 0.5], [0.25, 0.0], [-1.0, 0.5]]).view(1, 5, 1, 1, 1, 2)
    for sampling in SAMPLINGS:
        got = deformable_attention(value, [(2, 2)], places, torch.ones(1, 5, 1, 1, 1), sampling=sampling)
        assert got.flatten().tolist() == pytest.approx([1, 4, 2.5, 0.5, 0])


def test_transformers_computes_the_same():
    module = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    value, places, weights = drawn()
    theirs = module.MultiScaleDeformableAttention()(value, None, SIZES, None, places, weights, 64)
    assert relative_error(deformable_attention(value, SIZES, places, weights), theirs) < 1e-12


def test_shapes_that_do_not_go_together_are_told():
    value, places, weights = drawn()
    with pytest.raises(ValueError, match=r"value has 46 pixels, and levels of 5 x 7, 3 x 3 44"):
        deformable_attention(value, SIZES[:2], places, weights)
    with pytest.raises(ValueError, match=r"locations of shape .* should be \(2, queries, 2, 3, points, 2\)"):
        deformable_attention(value, SIZES, places[..., :1], weights)
    with pytest.raises(ValueError, match="weights of shape"):
        deformable_attention(value, SIZES, places, weights[:, :1])
    with pytest.raises(ValueError, match="sampling 'fast' is unknown"):
        deformable_attention(value, SIZES, places, weights, sampling="fast")


def test_one_graph_for_the_compiler():
    value, places, weights = drawn(dtype=torch.float32)

    def run(v, p, w):
        return deformable_attention(v, SIZES, p, w, sampling="grid_sample")

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.equal(compiled(value, places, weights), run(value, places, weights))
