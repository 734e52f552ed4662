import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torchvision.ops import masks_to_boxes
from torchvision.tv_tensors import BoundingBoxes, Mask

from convattn.config_errors import ConfigError
from convattn.data.dataset import DataWarning
from convattn.data.images import ImageError
from convattn.detection import transforms
from convattn.detection.annotations import Annotations
from convattn.detection.batch_targets import ImageTargets
from convattn.detection.mixing import mosaic, pasted
from convattn.detection.rasterise import bitmap
from convattn.detection.scenes import View
from convattn.detection.transforms import evaluation_transform, training_transform
from convattn.detection.variation import Variation

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
HEIGHT, WIDTH = 60, 90


def picture(seed=0, size=(WIDTH, HEIGHT)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def annotated(*boxes, size=(HEIGHT, WIDTH), outlines=True, crowd=(), data=None):
    """Boxes, each filled by a rhombus."""
    rhombs = [[np.array([(a + c) / 2, b, c, (b + d) / 2, (a + c) / 2, d, a, (b + d) / 2])] for a, b, c, d in boxes]
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    labels = np.arange(len(boxes))
    return Annotations(
        found, labels, np.isin(labels, crowd), areas, size, rhombs if outlines else None, 0 if data else -1, data
    )


class Several:
    """A data set of pictures, the second of which cannot be read."""

    paths = ("a.png", "b.png", "c.png")

    def __len__(self):
        return 3

    def read(self, index):
        if index == 1:
            raise ImageError("b.png: broken")
        return picture(index)

    def target(self, index):
        return annotated((10 + index, 10, 50, 45), (60, 20, 80, 55), data=self)


BOXES = [(10, 8, 50, 41), (33.5, 20.25, 88.5, 59), (0, 0, 7, 9)]


def test_resizing_cutting_and_mirroring_are_torchvisions_on_pixels_boxes_and_masks():
    shown = annotated(*BOXES)
    image = tvf.pil_to_tensor(picture())
    boxes = BoundingBoxes(torch.from_numpy(shown.boxes_xyxy), format="XYXY", canvas_size=(HEIGHT, WIDTH))
    masks = Mask(torch.from_numpy(np.stack([bitmap(one, shown.size) for one in shown.outlines])))

    def through(part):
        part = tvf.resize(part, [40, 60], antialias=False)
        part = tvf.crop(part, 3, 5, 30, 41)
        part = tvf.resize(part, [72, 99], antialias=False)
        return tvf.horizontal_flip(part)

    view = View.of(picture(), shown).resized((40, 60), antialias=False).cut(3, 5, 30, 41)
    scene = view.resized((72, 99), antialias=False).mirrored().scene()
    assert torch.equal(scene.image, through(image))
    assert scene.labels.tolist() == [0, 1]  # the third is cut off
    wanted = tvf.clamp_bounding_boxes(through(boxes))[:2].float()
    assert torch.allclose(scene.boxes_xyxy, wanted, atol=1e-5)
    assert torch.equal(scene.masks, through(masks)[:2])


def test_boxes_are_the_annotations_scaled_by_the_rounded_sizes():
    scene = View.of(picture(), annotated((-4, 8, 50, 99))).resized((80, 120), antialias=False).scene()
    assert scene.boxes_xyxy.tolist() == [[0, pytest.approx(8 * 80 / 60), pytest.approx(50 * 120 / 90), 80]]


def test_masks_are_the_nearest_pixels():
    scene = View.of(picture(), annotated(*BOXES)).resized((37, 71), antialias=False).scene()
    whole = bitmap(annotated(*BOXES).outlines[1], (HEIGHT, WIDTH))
    rows, columns = np.arange(37) * HEIGHT // 37, np.arange(71) * WIDTH // 71
    assert np.array_equal(scene.masks[1].numpy(), whole[rows][:, columns])


def test_an_object_without_a_pixel_left_goes_and_one_without_an_outline_stays():
    corner = (40, 40, 80, 59)  # whose rhombus leaves the corners free
    for outlines, left in ((True, 0), (False, 1)):
        scene = View.of(picture(), annotated(corner, outlines=outlines)).cut(0, 0, 42, 45).scene()
        assert len(scene.labels) == left
    scene = View.of(picture(), annotated(corner)).cut(0, 0, 42, 45).scene(masks=False)
    assert scene.boxes_xyxy.tolist() == [[40, 40, 45, 42]]
    assert scene.masks is None


def test_training_gives_what_torchvisions_detectors_are_told():
    transform = training_transform(Variation((48,), longest_side=70, flip=0.0), MEAN, STD, masks=True)
    image, target = transform(picture(), annotated(*BOXES, crowd=[1]))
    assert image.shape == (3, 47, 70)  # int(side · 70 / 90 + 0.5)
    assert image.dtype == torch.float32
    pixels = tvf.resize(tvf.pil_to_tensor(picture()), [47, 70], antialias=False).float() / 255
    assert torch.allclose(
        image, (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], atol=1e-5
    )
    assert {name: (part.dtype, tuple(part.shape)) for name, part in target.items()} == {
        "boxes": (torch.float32, (3, 4)),
        "labels": (torch.int64, (3,)),
        "iscrowd": (torch.bool, (3,)),
        "masks": (torch.uint8, (3, 47, 70)),
    }
    assert target["iscrowd"].tolist() == [False, True, False]


def test_an_image_without_objects_has_empty_tensors():
    transform = training_transform(Variation((48,), crop=1.0), MEAN, STD, masks=True)
    image, target = transform(picture(), annotated())
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, *image.shape[1:])


def test_every_draw_comes_from_torch_and_stays_within_its_range():
    variation = Variation((40, 48, 56), longest_side=200, crop=0.5, photometric=True)
    transform = training_transform(variation, MEAN, STD, masks=False)
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = transform(picture(), annotated(*BOXES))
        torch.manual_seed(seed)
        again, same = transform(picture(), annotated(*BOXES))
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], same["boxes"])
        assert "masks" not in target
        seen.add(min(image.shape[1:]))
        limits = torch.tensor([image.shape[2], image.shape[1]])
        assert (target["boxes"][:, 2:] <= limits).all()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    assert seen == {40, 48, 56}


def test_a_range_of_sides_holds_both_ends():
    transform = training_transform(Variation((40, 43), between=True, longest_side=200), MEAN, STD, masks=False)
    sides = {transform(picture(), annotated())[0].shape[1] for _ in range(60)}
    assert sides == {40, 41, 42, 43}


def test_the_crop_branch_cuts_from_a_smaller_copy():
    transform = training_transform(Variation((480,), crop=1.0, flip=0.0), MEAN, STD, masks=False)
    shapes = {transform(picture(size=(160, 120)), annotated(size=(120, 160)))[0].shape for _ in range(12)}
    ratios = {shape[2] / shape[1] for shape in shapes}
    assert len(ratios) > 6  # windows of 384 to 600 on each side, whatever the picture's ratio
    assert all(384 / 600 - 0.02 <= ratio <= 600 / 384 + 0.02 for ratio in ratios)


def test_a_long_image_is_brought_within_the_longest_side():
    transform = evaluation_transform((1333, 800), MEAN, STD)
    shown = annotated((0, 0, 1, 900), size=(5000, 1))
    image, target = transform(picture(size=(1, 5000)), shown)
    assert image.shape == (3, 1333, 1)
    assert target.boxes_xyxy.tolist() == [[0, 0, 1, 900]]  # judged in the picture's own pixels


def test_evaluation_takes_the_data_set_off():
    _, target = evaluation_transform((90, 60), MEAN, STD)(picture(), Several().target(0))
    assert target.data is None
    assert evaluation_transform((90, 60), MEAN, STD)(picture(), None)[1] is None


def test_evaluation_makes_pictures_smaller_as_opencv_does_unless_it_is_told():
    sharp = Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    for antialias in (False, True):
        image, _ = evaluation_transform((45, 30), [0.0] * 3, [1 / 255] * 3, antialias=antialias)(sharp, None)
        want = tvf.resize(tvf.pil_to_tensor(sharp), list(image.shape[1:]), antialias=antialias)
        assert torch.equal(image, want.float())


def test_masks_take_no_more_memory_than_is_stated(monkeypatch):
    monkeypatch.setattr(transforms, "MOST_MASK_BYTES", 2 * 48 * 72)
    transform = training_transform(Variation((48,), flip=0.0), MEAN, STD, masks=True)
    with pytest.warns(DataWarning, match="masks of 3 objects would take 10,368 bytes; the 1 smallest are left out"):
        _, target = transform(picture(), annotated(*BOXES))
    assert target["labels"].tolist() == [0, 1]


def test_a_mosaic_is_four_pictures_that_leave_nothing_free():
    grey = [Image.new("RGB", (WIDTH, HEIGHT), (value,) * 3) for value in (10, 20, 30, 40)]
    views = [View.of(one, annotated((10, 8, 80, 51))) for one in grey]
    for seed in range(5):
        torch.manual_seed(seed)
        scene = mosaic(views, (64, 80), flip=0.5, antialias=False)
        assert scene.image.shape == (3, 64, 80)
        assert scene.image.unique().tolist() == [10, 20, 30, 40]
        for box, mask in zip(scene.boxes_xyxy.long().tolist(), scene.masks, strict=True):
            inside = scene.image[0, box[1] : box[3], box[0] : box[2]]
            assert len(inside.unique()) == 1  # of one picture
            assert len(scene.image[0][mask.bool()].unique()) == 1


def test_what_is_pasted_hides_what_is_below():
    below = View.of(Image.new("RGB", (WIDTH, HEIGHT), (10,) * 3), annotated((0, 0, 90, 60), (10, 10, 20, 20)))
    above = View.of(Image.new("RGB", (WIDTH, HEIGHT), (200,) * 3), annotated((0, 0, 45, 60), (5, 5, 30, 30)))
    first = below.scene()
    scene = pasted(first, above, choose=iter([True, False]).__next__)
    new = scene.masks[-1].bool()
    assert torch.equal(new, above.scene().masks[0].bool())
    assert torch.equal(scene.image[0] == 200, new)
    assert torch.equal(scene.masks[0].bool(), first.masks[0].bool() & ~new)
    assert scene.labels.tolist() == [0, 1, 0]
    assert torch.equal(scene.boxes_xyxy[0], masks_to_boxes(scene.masks[:1])[0] + torch.tensor([0, 0, 1, 1]))
    hidden = pasted(View.of(picture(), annotated((20, 25, 25, 35))).scene(), above, choose=lambda: True)
    assert hidden.labels.tolist() == [0, 1]  # nothing of the one below is left
    crowd = View.of(picture(), annotated((0, 0, 45, 60), crowd=[0]))
    assert pasted(first, crowd, choose=lambda: True) is first  # where it ends nobody has said


def test_other_images_come_from_the_same_data_and_unreadable_ones_are_passed_over():
    data = Several()
    variation = Variation((48,), mosaic=1.0, copy_paste=1.0)
    transform = training_transform(variation, MEAN, STD, masks=True)
    counts = set()
    for seed in range(10):
        torch.manual_seed(seed)
        image, target = transform(data.read(0), data.target(0))
        assert image.shape == (3, 48, 72)
        assert len(target["masks"]) == len(target["boxes"]) == len(target["labels"])
        counts.add(len(target["boxes"]))
    assert len(counts) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(short_sides=()), "short_sides must name a side"),
        (dict(short_sides=(0,)), "a side of 0 pixels must be at least 1"),
        (dict(short_sides=(2000,)), "longest_side 1333 must not be below the short sides, 2000"),
        (dict(short_sides=(640, 672, 800), between=True), "between takes the least and the greatest short side, not 3"),
        (dict(flip=1.5), r"variation.flip 1.5 must be between 0 and 1"),
        (dict(mosaic=float("nan")), "variation.mosaic nan"),
    ],
)
def test_a_variation_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Variation(**options)


def test_objects_are_not_copied_without_masks():
    with pytest.raises(ConfigError, match="copies objects by their masks; train with masks"):
        training_transform(Variation(copy_paste=0.5), MEAN, STD, masks=False)


def test_targets_of_a_batch_move_together_and_annotations_stay():
    targets = ImageTargets([{"boxes": torch.zeros(2, 4)}, annotated(*BOXES)])
    moved = targets.to(torch.device("meta"))
    assert moved[0]["boxes"].is_meta
    assert moved[1] is targets[1]
    assert len(targets[:1]) == 1
    assert isinstance(targets[:1], ImageTargets)
