"""Detectors by queries learn: four images by heart, and a little in a few steps."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from convattn.detection.create import create_detector
from tiny_detectors import Trunk, detector, target

SIDE = 96
FORMS = {
    "sparse_rcnn": (dict(proposals=10, layers=3), 5e-4, 1.0),  # options, rate, the largest gradient
    "dino": (dict(queries=20, layers=2, denoising=20), 1e-3, 0.1),
}


def scenes(count: int = 4) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Rectangles of three classes, each of its own colour, on noise."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2]])
    pictures, targets = [], []
    for at in range(count):
        picture, boxes, labels = 0.2 * torch.randn(3, SIDE, SIDE, generator=generator), [], []
        for column, row in ((0, 0), (1, 1), (1, 0))[: 1 + at % 3]:
            width, height = torch.randint(20, 40, (2,), generator=generator).tolist()
            x = 48 * column + int(torch.randint(0, 48 - width, (1,), generator=generator))
            y = 48 * row + int(torch.randint(0, 48 - height, (1,), generator=generator))
            labels.append(int(torch.randint(0, 3, (1,), generator=generator)))
            boxes.append((x, y, x + width, y + height))
            picture[:, y : y + height, x : x + width] += colours[labels[-1]][:, None, None]
        pictures.append(picture)
        targets.append(target((SIDE, SIDE), *boxes, labels=labels))
    return pictures, targets


def learn(model, pictures, targets, steps: int, rate: float, largest: float) -> list[float]:
    """The losses of so many steps."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    seen = []
    for _ in range(steps):
        loss = sum(model(pictures, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
        optimizer.step()
        schedule.step()
        seen.append(loss.item())
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_four_images_are_learnt_by_heart(name):
    """Every object is found once, as what it is and where it is, and nothing else; a minute on one core."""
    options, rate, largest = FORMS[name]
    torch.manual_seed(0)
    model = create_detector(Trunk(32), name, 3, width=64, hidden=128, **options).train()
    pictures, targets = scenes()
    learn(model, pictures, targets, 250, rate, largest)
    for found, truth in zip(model.eval()(pictures), targets, strict=True):
        sure = found["scores"] > 0.5
        overlap = box_iou(found["boxes"][sure], truth["boxes"])
        overlap = overlap * (found["labels"][sure][:, None] == truth["labels"])
        assert overlap.shape[0] == overlap.shape[1]
        assert (overlap.amax(0) > 0.75).all()


@pytest.mark.parametrize("name", FORMS)
def test_losses_fall_in_a_few_steps(name):
    pictures, targets = scenes(2)
    seen = learn(detector(name).train(), pictures, targets, 20, rate=2e-3, largest=FORMS[name][2])
    assert max(seen[-3:]) < 0.7 * seen[0]
