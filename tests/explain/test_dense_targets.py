"""Grad-CAM of what a segmenter says of pixels, and of one box of a detector."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import convattn
from convattn.explain.grad_cam import grad_cam
from tiny_detectors import detector
from tiny_segmenters import TINY_OPTIONS
from toys import randomise_norms


class PixelSums(nn.Module):
    """Logits of every pixel: class 0 is the first channel, class 1 three times the second; the layer hands on."""

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()

    def forward(self, x):
        x = self.features(x)
        return torch.stack([x[:, 0], 3 * x[:, 1]], 1)


def image():
    x = torch.zeros(1, 2, 4, 4)
    x[0, 0, 1, 2], x[0, 0, 0, 0], x[0, 1, 3, 3] = 2, 1, 1
    return x


def test_a_class_of_a_segmenter_over_its_pixels():
    heat = grad_cam(PixelSums(), image(), 0, "features")[0]
    want = torch.zeros(4, 4)
    want[1, 2], want[0, 0] = 1, 0.5
    assert torch.equal(heat, want)
    heat = grad_cam(PixelSums(), image(), 1, "features")[0]
    assert heat.nonzero().tolist() == [[3, 3]]


def test_over_a_mask_and_the_class_with_most_pixels():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[3, 3] = True
    masked = grad_cam(PixelSums(), image(), None, "features", mask=mask)[0]
    assert masked.nonzero().tolist() == [[3, 3]]  # class 1 there
    assert grad_cam(PixelSums(), image(), None, "features")[0, 1, 2] == 1  # class 0 of all pixels
    with pytest.raises(ValueError, match=r"^mask has shape \(2, 2\); the images' maps of classes are \(1, 4, 4\)$"):
        grad_cam(PixelSums(), image(), 0, "features", mask=mask[:2, :2])
    with pytest.raises(ValueError, match=r"^the mask has no pixel in image 0; give another class, or a mask$"):
        grad_cam(PixelSums(), image(), 0, "features", mask=~(mask | ~mask))


def segmenter():
    torch.manual_seed(0)
    model = convattn.create_segmenter("smt_nano", "semantic_fpn", num_classes=3, width=16, **TINY_OPTIONS)
    randomise_norms(model)
    return model


def test_a_segmenter_of_ours_agrees_with_the_formula():
    model, images = segmenter().train(), torch.randn(2, 3, 64, 64)
    found = grad_cam(model, images, layer=16)
    assert all(module.training for module in model.modules() if not isinstance(module, nn.Dropout))
    model.eval()
    stage = model.get_submodule("backbone.stages.2")
    kept = {}
    handle = stage.register_forward_hook(lambda module, args, out: kept.update(out=out))
    logits = model(images)
    handle.remove()
    labels = logits.argmax(1)
    heats = []
    for index in range(2):
        best = int(labels[index].flatten().mode().values)
        score = logits[index, best][labels[index] == best].sum()
        (gradient,) = torch.autograd.grad(score, kept["out"], retain_graph=True)
        heats.append((gradient[index].mean((1, 2), keepdim=True) * kept["out"][index]).sum(0).relu().detach())
    want = F.interpolate(torch.stack(heats)[:, None], (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, want / want.amax((1, 2), keepdim=True), rtol=1e-3, atol=1e-4)
    absent = next((c for c in range(3) if not (labels[0] == c).any()), None)
    if absent is not None:
        with pytest.raises(
            ValueError, match=rf"^class {absent} has no pixel in image 0; give another class, or a mask"
        ):
            grad_cam(model, images, absent)


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_a_box_of_a_detector_of_ours(name):
    model = detector(name)
    model.score_threshold = 0.0
    model.train()
    images = torch.randn(1, 3, 70, 90)
    model.eval()
    boxes = model(images)[0]["boxes"]
    model.train()
    for wanted in (None, boxes[0], boxes[-1]):
        heat = grad_cam(model, images, layer=8, box_xyxy=wanted)
        assert heat.shape == (1, 70, 90)
        assert not heat.isnan().any()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(
        ValueError, match=r"^no object found in image 0 overlaps the box \[-9.0, -9.0, -8.0, -8.0\]; giv"
    ):
        grad_cam(model, images, layer=8, box_xyxy=torch.tensor([-9.0, -9, -8, -8]))
    with pytest.raises(ValueError, match=r"^box has shape \(3,\); expected x0, y0, x1, y1, once or for each image$"):
        grad_cam(model, images, layer=8, box_xyxy=torch.ones(3))
    model.score_threshold = 1.0
    with pytest.raises(ValueError, match=r"^nothing is found in image 0; lower the model's score_threshold"):
        grad_cam(model, images, layer=8)


class Boxes(nn.Module):
    """Finds two objects; the score of each is the mean of its own channel."""

    roi_heads = None

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()

    def forward(self, images):
        maps = self.features(torch.stack(images))
        boxes = torch.tensor([[0.0, 0, 2, 2], [2.0, 2, 4, 4]])
        return [dict(boxes=boxes, scores=x.mean((1, 2)), labels=torch.tensor([4, 7])) for x in maps]


def test_the_box_that_is_nearest_and_the_class_that_is_wanted():
    def spots(**wanted):
        return grad_cam(Boxes(), image(), wanted.pop("target", None), "features", **wanted)[0].nonzero().tolist()

    first, second = [[0, 0], [1, 2]], [[3, 3]]
    assert spots() == first  # the surest
    assert spots(box_xyxy=torch.tensor([1.5, 1.5, 4.0, 4.0])) == second
    assert spots(box_xyxy=torch.tensor([0.0, 0.0, 3.0, 2.0])) == first
    assert spots(target=7) == second
    with pytest.raises(ValueError, match=r"^nothing of class 5 is found in image 0; lower the model's score_threshold"):
        spots(target=5)


def test_what_does_not_go_together():
    classifier = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"^a box is of a detector, and Sequential finds none; leave it out$"):
        grad_cam(classifier, image(), 0, "0", box_xyxy=torch.ones(4))
    with pytest.raises(ValueError, match=r"^a mask is of a segmenter, and Sequential gives no map of logits; leave it"):
        grad_cam(classifier, image(), 0, "0", mask=torch.ones(4, 4))


def test_a_segmenter_of_torchvision():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ).eval()
    assert grad_cam(model, torch.randn(1, 3, 64, 64), layer="backbone.16").shape == (1, 64, 64)
