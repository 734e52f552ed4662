"""What detectors refuse, in one line that says which image, what is wrong and what to do."""

import pytest
import torch
from torch import nn

from convattn.detection.create import create_detector
from tiny_detectors import SIZE, WITH, WITHOUT, Trunk, detector, images, target

NAN = float("nan")


def says(text: str):
    return pytest.raises(ValueError, match=f"^{text}$")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            target(SIZE, (5, 6, 50, 40)) | {"boxes": torch.tensor([[5.0, NAN, 50, 40]])},
            r"box 0 of image 1 \(90 × 61 pixels\) is 5, nan, 50, 40: not all of its numbers are finite; leave it out",
        ),
        (
            target(SIZE, (1, 2, 3, 4), (5, 6, 5, 40)),
            r"box 1 of image 1 \(90 × 61 pixels\) is 5, 6, 5, 40: x2 must be above x1 and y2 above y1; give corners, "
            "not a width and a height",
        ),
        (
            target(SIZE, (50, 40, 20, 10)),
            r"box 0 of image 1 \(90 × 61 pixels\) is 50, 40, 20, 10: x2 must be above x1 .*",
        ),
        (
            target(SIZE, (5, 6, 50, 40), labels=[-1]),
            r"box 0 of image 1 \(90 × 61 pixels\) is 5, 6, 50, 40 with label -1; labels are 0 to 2",
        ),
        (
            target(SIZE, (5, 6, 50, 40), labels=[3]),
            ".* with label 3; labels are 0 to 2; there is no background among them, count from 0",
        ),
        (
            target(SIZE, (5, 6, 50, 40)) | {"labels": torch.tensor([0.0])},
            "labels of image 1 are torch.float32; give whole numbers, int64",
        ),
        (
            target(SIZE, (5, 6, 50, 40)) | {"labels": torch.tensor([0, 1])},
            r"image 1 has 1 boxes and labels of shape \(2,\); give one each",
        ),
        (
            target(SIZE) | {"boxes": torch.zeros(2, 5)},
            r"boxes of image 1 have shape \(2, 5\); give \(n, 4\) xyxy",
        ),
        (
            target(SIZE, (5, 6, 50, 40)) | {"masks": torch.zeros(1, 64, 96)},
            r"image 1 of 90 × 61 pixels has 1 boxes and masks of shape \(1, 64, 96\); give \(1, 61, 90\)",
        ),
        (
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
            r"target of image 1 has no masks; this detector learns them: give \(n, H, W\)",
        ),
        (
            target(SIZE, (5, 6, 50, 40), iscrowd=torch.tensor([0, 0])),
            r"image 1 has 1 boxes and iscrowd of shape \(2,\)",
        ),
        ({"labels": torch.tensor([0])}, r"target of image 1 has \['labels'\]; give a dict with boxes .*"),
        ("a.jpg", "target of image 1 has str; give a dict with boxes .*"),
        (
            {name: value for name, value in target(SIZE, (5, 6, 50, 40)).items() if name != "masks"} | {"polygons": []},
            "image 1 has 1 boxes and 0 polygons; give one list each",
        ),
        (
            target(SIZE, (5, 6, 50, 40)) | {"boxes": torch.tensor([[5.0, 6, 1e30, 1e30]])},
            r"box 0 of image 1 \(90 × 61 pixels\) is 5, 6, 1e\+30, 1e\+30: it leads far outside the image; give .*",
        ),
        (
            target(SIZE, (5, 6, 50, 40)) | {"boxes": torch.tensor([[-90.0, 0, 180.5, 61]])},
            r"box 0 of image 1 \(90 × 61 pixels\) is -90, 0, 180.5, 61: it leads far outside the image; .*",
        ),
        (
            target(SIZE, (5, 6, 50, 40)) | {"masks": torch.full((1, *SIZE), 255)},
            "masks of image 1 hold numbers from 255 to 255; give 0 and 1",
        ),
        (
            target(SIZE, (5, 6, 50, 40)) | {"masks": torch.full((1, *SIZE), NAN)},
            "masks of image 1 hold numbers from nan to nan; give 0 and 1",
        ),
    ],
)
def test_targets(wrong, message):
    with says(message):
        detector("mask_rcnn").train()(images(SIZE, SIZE), [WITH, wrong])


@pytest.mark.parametrize("style", ["mmdet", "detectron2"])
@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([], "its outline has fewer than three corners"),
        ([[1.0, 2, 3, 4]], "its outline has fewer than three corners"),
        ([[1.0, 2, 3, 4, 5, 6, 7]], "its outline is no list of x and y in turn"),
        ([[1.0, 2, NAN, 4, 5, 6]], "its outline leads far outside the image"),
        ([[1.0, 2, 1e9, 4, 5, 6]], "its outline leads far outside the image"),
        ([["a"]], "its outline holds something else than numbers"),
        (None, "its outline is no list of polygons"),
    ],
)
def test_outlines(style, outline, message):
    """What pycocotools would read beyond its memory, or not at all."""
    wrong = {name: value for name, value in target(SIZE, (5, 6, 50, 40)).items() if name != "masks"}
    with says(f"object 0 of image 0: {message}; give a list of polygons, each x and y in turn"):
        detector("mask_rcnn", style=style).train()(images(SIZE), [wrong | {"polygons": [outline]}])


def test_boxes_in_another_format_of_torchvision():
    from torchvision import tv_tensors

    boxes = tv_tensors.BoundingBoxes(WITH["boxes"], format="XYWH", canvas_size=SIZE)
    with says("boxes of image 0 are in format XYWH; give x1, y1, x2, y2"):
        detector("atss").train()(images(SIZE), [{**WITH, "boxes": boxes}])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([WITH], "1 targets for 2 images; give a list with a dict for each image"),
        (WITH, "one dict for 2 images; give a list with a dict for each image"),
        (None, r"a detector that trains needs targets; give them, or call eval\(\) first"),
    ],
)
def test_as_many_targets_as_images(given, message):
    with says(message):
        detector("retinanet").train()(images(SIZE, SIZE), given)


def test_targets_are_for_training():
    with says(r"in evaluation a detector takes no targets; losses\(images, targets\) gives the losses"):
        detector("retinanet").eval()(images(SIZE), [WITHOUT])


def test_as_many_original_sizes_as_images():
    with says("1 original sizes for 2 images; give one each"):
        detector("retinanet").eval()(images(SIZE, SIZE), original_sizes=[(10, 10)])
    for wrong, told in (((0, 5), "0 × 5"), ((10.5, 5), r"10\.5 × 5"), ((5,), "5")):
        with says(f"original size 0 is {told}; give height and width in pixels, whole numbers from 1"):
            detector("retinanet").eval()(images(SIZE), original_sizes=[wrong])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "there is no image in the batch; give one or more"),
        (
            [torch.zeros(3, 8, 8, dtype=torch.uint8)],
            "image 0 is uint8; give normalised images of float32",
        ),
        ([torch.zeros(3, 8, 8).double()], "image 0 is float64, the model float32; convert one of them"),
        (
            [torch.zeros(3, 8, 8), torch.zeros(8, 8)],
            r"image 1 has shape \(8, 8\); images are \(3, H, W\), 1 × 1 or more",
        ),
        ([torch.zeros(8, 8, 3)], r"image 0 has shape \(8, 8, 3\); images are \(3, H, W\), 1 × 1 or more"),
        ([torch.zeros(3, 0, 8)], r"image 0 has shape \(3, 0, 8\); images are \(3, H, W\), 1 × 1 or more"),
        (["a.jpg"], r"image 0 is str; give tensors \(3, H, W\)"),
        ([torch.zeros(3, 8, 8, device="meta")], "image 0 is on meta, the model on cpu; move one of them"),
    ],
)
def test_images(wrong, message):
    with says(message):
        detector("faster_rcnn").eval()(wrong)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fast_rcnn", {}, "detector 'fast_rcnn' is unknown; nearest: faster_rcnn.*"),
        ("mask_rcnn", dict(style="mmcv"), "style 'mmcv' is unknown; .*mmdet.*"),
        ("mask_rcnn", dict(box_head="3fc"), "box_head '3fc' is unknown; nearest: 2fc.*"),
        ("atss", dict(style="detectron2"), "style 'detectron2' is of R-CNN; atss has mmdetection's only: leave it out"),
        ("retinanet", dict(box_head="2fc"), "box_head '2fc' is of R-CNN; retinanet has none: leave it out"),
        ("atss", dict(width=48), "width 48 must be a multiple of 32, and 64 or more, for atss: .*"),
        ("mask_rcnn", dict(num_classes=0), "num_classes 0 must be 1 or more"),
        ("mask_rcnn", dict(max_detections=0), "max_detections 0 must be 1 or more"),
        ("mask_rcnn", dict(num_classes=2.5), r"num_classes 2\.5 must be a whole number"),
        ("mask_rcnn", dict(score_threshold=1.5), r"score_threshold 1.5 must be 0 to 1"),
        ("mask_rcnn", dict(frozen_stages=9), "frozen_stages 9 must be 0 to 5: .*"),
        ("dino", dict(style="detectron2"), "style 'detectron2' is of R-CNN; dino has flavours: leave it out"),
        ("sparse_rcnn", dict(style="detectron2"), "style .* is of R-CNN; sparse_rcnn has mmdetection's only: .*"),
        ("dino", dict(box_head="2fc"), "box_head '2fc' is of R-CNN; dino has none: leave it out"),
        ("dino", dict(proposals=9), "proposals 9 is of sparse_rcnn; dino has no proposals: leave it out"),
        ("sparse_rcnn", dict(queries=9), "queries 9 is of dino, dino_nano; sparse_rcnn has no queries: leave it out"),
        ("sparse_rcnn", dict(flavour="mmdet"), "flavour 'mmdet' is of dino, .*; sparse_rcnn has no flavour: .*"),
        ("mask_rcnn", dict(layers=3), "layers 3 is of sparse_rcnn, dino, dino_nano; mask_rcnn has no layers: .*"),
        ("atss", dict(points=2), "points 2 is of dino, dino_nano; atss has no points: leave it out"),
        ("dino", dict(flavour="mmcv"), "flavour 'mmcv' is unknown; known: detrex, mmdet"),
        ("dino", dict(queries=0), "queries 0 must be 1 or more"),
        ("sparse_rcnn", dict(layers=0), "layers 0 must be 1 or more"),
        ("dino", dict(levels=6), "levels 6 must be 2 to 5"),
        ("dino", dict(levels=1), "levels 1 must be 2 to 5"),
        ("dino", dict(width=96, heads=5), "5 heads do not divide width 96; take heads that do"),
        ("dino", dict(width=48), "width 48 must be a multiple of 32 for dino: its norms have 32 groups"),
        ("sparse_rcnn", dict(width=36), "8 heads do not divide width 36; take heads that do"),
        ("mask_rcnn", dict(drop_path_rate=0.1), "options drop_path_rate are of a backbone given by name, .*"),
    ],
)
def test_options(name, options, message):
    with says(message):
        create_detector(Trunk(), name, **options)


def test_a_backbone_without_the_levels():
    with says("Trunk has levels of stride 4, 8, 16; 4, 8, 16, 32 are needed"):
        create_detector(Trunk(strides=(4, 8, 16)), "mask_rcnn")
    with says("Trunk has levels of stride 4, 8, 16; 8, 16, 32 are needed"):
        create_detector(Trunk(strides=(4, 8, 16)), "retinanet")
    with says("Trunk has levels of stride 4, 8, 16; 4, 8, 16, 32 are needed"):
        create_detector(Trunk(strides=(4, 8, 16)), "sparse_rcnn")
    with says("Trunk has levels of stride 4, 8, 16; 8, 16, 32 are needed"):
        create_detector(Trunk(strides=(4, 8, 16)), "dino")
    with says("Trunk has levels of stride 8, 16, 32; 4, 8, 16, 32 are needed"):
        create_detector(Trunk(strides=(8, 16, 32)), "dino", levels=5)
    with says("Linear has no feature_info, which says what levels it has"):
        create_detector(nn.Linear(2, 2), "atss")
    with says("DenseDetector has the heads of a task already; give its backbone alone"):
        create_detector(detector("retinanet"), "atss")
    with says("vit_tiny_patch16_224 has levels of stride 16; 8, 16, 32 are needed.*|.*8, 16, 32 are needed.*"):
        create_detector("timm:vit_tiny_patch16_224", "atss")
