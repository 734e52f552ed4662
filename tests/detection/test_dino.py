"""DINO on given maps of a backbone, in both flavours, and what no file of the references holds."""

import pytest
import torch

from convattn.detection.denoising import Noise
from convattn.detection.dino import FLAVOURS, DinoHead
from convattn.detection.query_detectors import DinoDetector
from convattn.detection.truth import Truth
from convattn.weights.query_detectors import DETREX_DINO_NAMES, MMDET_DINO_NAMES
from query_golden import load_golden
from tiny_detectors import Trunk

NAMES = {"detrex": DETREX_DINO_NAMES, "mmdet": MMDET_DINO_NAMES}
PARTS = {
    "detrex": {"label": "loss_class", "l1": "loss_bbox", "iou": "loss_giou"},
    "mmdet": {"label": "loss_cls", "l1": "loss_bbox", "iou": "loss_iou"},
}


def their_name(flavour, loss):
    """What the reference calls one of our losses, of two layers."""
    place, part = loss.split(".")
    word, noisy = PARTS[flavour][part], place.startswith("denoising_")
    layer = place.removeprefix("denoising_")
    if flavour == "detrex":
        return f"{word}{'_dn' if noisy else ''}{ {'layer0': '_0', 'layer1': '', 'encoder': '_enc'}[layer] }"
    return f"{ {'layer0': 'd0.', 'layer1': '', 'encoder': 'enc_'}[layer] }{'dn_' if noisy else ''}{word}"


def padding_of(shapes, batch):
    padding = torch.ones(len(shapes), *batch, dtype=torch.bool)
    for at, (height, width) in enumerate(shapes):
        padding[at, :height, :width] = False
    return padding


def head_of(golden, flavour, noise=None):
    config = golden.config
    head = DinoHead(
        config["channels"],
        config["classes"],
        flavour,
        dim=config["embed"],
        queries=config["queries"],
        encoder_layers=config["encoder_layers"],
        decoder_layers=config["decoder_layers"],
        hidden=config["ffn"],
        denoising=config["dn_number"],
        draw=lambda *_: noise,
    ).double()
    names = NAMES[flavour.name]
    own = {names.to_ours(name): tensor for name, tensor in golden.state().items()}
    head.load_state_dict(own)
    assert {names.to_theirs(name) for name in head.state_dict()} == {*golden.shapes}
    return head


@pytest.fixture(scope="module", params=FLAVOURS.values(), ids=FLAVOURS)
def case(request):
    flavour = request.param
    golden = load_golden(f"dino_{flavour.name}")
    x = golden.inputs()
    head = head_of(golden, flavour, Noise(*(x[name] for name in ("label_p", "label_new", "sign", "part"))))
    return golden, x, head


def test_losses_and_gradients_are_the_references(case):
    golden, x, head = case
    maps = [x[f"map{at}"].clone().requires_grad_() for at in range(3)]
    shapes = [tuple(shape) for shape in x["image_shapes"]]
    truths = [Truth(x[f"boxes{at}"], x[f"labels{at}"], shape) for at, shape in enumerate(shapes)]
    losses = head.losses(maps, truths, padding_of(shapes, x["batch_shape"]))
    total = sum(losses.values())
    weights = dict(head.named_parameters())
    gradients = torch.autograd.grad(total, [*maps, *weights.values()])
    norms = {
        NAMES[head.flavour.name].to_theirs(name): gradient.norm()
        for name, gradient in zip(weights, gradients[3:], strict=True)
    }
    got = {f"loss.{their_name(head.flavour.name, name)}": loss for name, loss in losses.items()}
    assert {*got} == {name for name in golden.names if name.startswith("loss.")} - {"loss.total"}
    got |= {f"grad_map{at}": gradients[at] for at in range(3)}
    got |= {"loss.total": total, "grad_norm": torch.stack([norms[name] for name in golden.shapes])}
    errors = {name: golden.error(name, value) for name, value in got.items()}
    assert max(errors.values()) < 1e-9, errors


def test_detections_are_the_references(case):
    golden, x, head = case
    shapes = [tuple(shape) for shape in x["infer_image_shapes"]]
    maps = [x[f"infer_map{at}"] for at in range(3)]
    head.most = golden.config["keep"]
    padding = padding_of(shapes, x["infer_batch_shape"])
    if head.flavour.name == "detrex":  # which masks nothing in use, and cuts boxes off later
        rows = head.surest(maps, shapes)
        assert torch.equal(rows.boxes_xyxy, head.surest(maps, shapes, padding).boxes_xyxy)
    else:
        rows = DinoDetector(Trunk(), [], head).surest_of(maps, shapes, padding)
    parts = {"boxes": rows.boxes_xyxy, "scores": rows.scores, "labels": rows.labels}
    got = {f"det{at}.{name}": part[at] for name, part in parts.items() for at in range(len(shapes))}
    assert {*got} == {name for name in golden.names if name.startswith("det")}
    assert max(golden.error(name, value) for name, value in got.items()) < 1e-9


def small_head(**options):
    torch.manual_seed(0)
    return DinoHead(
        (8, 12, 16), 5, dim=64, heads=4, encoder_layers=1, decoder_layers=2, hidden=16, **{"queries": 6, **options}
    )


def maps_of(height, width, batch=2):
    generator = torch.Generator().manual_seed(1)
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32)]
    return [
        torch.randn(batch, channels, *size, generator=generator)
        for channels, size in zip((8, 12, 16), sizes, strict=True)
    ]


def truth(*boxes, size=(64, 96)):
    return Truth(torch.tensor(boxes).float().reshape(-1, 4), torch.arange(len(boxes)) % 5, size)


@pytest.mark.parametrize("boxes", [(0, 0), (1, 0), (3, 7)])
def test_every_weight_learns_whatever_the_images_hold(boxes):
    head = small_head()
    truths = [truth(*[(4.0, 5.0, 40.0, 60.0)] * count) for count in boxes]
    losses = head.losses(maps_of(64, 96), truths)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, weight in head.named_parameters() if weight.grad is None]
    if not any(boxes):
        assert all(loss.item() == 0 for name, loss in losses.items() if name.startswith("denoising"))


def test_an_image_of_fewer_pixels_than_queries_gives_as_many():
    head = small_head(queries=50).eval()
    found = head.surest(maps_of(16, 16, batch=1), [(16, 16)])
    pixels = 4 + 1 + 1 + 1
    assert found.scores.shape == (1, 5 * pixels) and head.places(maps_of(16, 16)) == pixels
    truths = [truth((1, 1, 9, 9), size=(16, 16))] * 2
    losses = head.losses(maps_of(16, 16), truths)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_no_infinities(dtype):
    head = small_head()
    with torch.autocast("cpu", dtype):
        losses = head.losses(maps_of(64, 96), [truth((4, 5, 40, 60))] * 2)
    for name, loss in losses.items():
        assert loss.isfinite(), name
        assert loss.dtype == torch.float32
    sum(losses.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in head.parameters())


def test_first_scores_are_those_of_rare_objects():
    found = small_head().eval().surest(maps_of(64, 96, batch=1), [(64, 96)])
    assert 0.003 < found.scores.median().item() < 0.03


def test_a_width_that_norms_or_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="dim 48 must be a multiple of 32 and of 8 heads"):
        DinoHead((8, 12, 16), 5, dim=48)
