"""Small detectors, images and targets, for tests of what detectors do with them."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from convattn.detection.create import create_detector

DENSE = ("retinanet", "atss")
NAMES = ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet", "atss"]
FORMS = [
    *((name, {}) for name in NAMES),
    ("cascade_mask_rcnn", dict(box_head="4conv1fc")),
    ("mask_rcnn", dict(style="detectron2")),
    ("cascade_mask_rcnn", dict(style="detectron2")),
]
QUERIES = [("sparse_rcnn", {}), ("dino", {}), ("dino", dict(flavour="mmdet"))]
QUERY_IDS = ["sparse_rcnn", "dino-detrex", "dino-mmdet"]
_FEW = {  # of what they have many
    "atss": dict(width=64),
    "sparse_rcnn": dict(proposals=20, layers=2),
    "dino": dict(width=64, queries=20, layers=2, denoising=6),
}
IDS = ["-".join((name, *options.values())) for name, options in FORMS]


class Trunk(nn.Module):
    """The smallest backbone with four levels, and norms."""

    def __init__(self, width: int = 8, strides=(4, 8, 16, 32)):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, strides[0], 1), nn.BatchNorm2d(width), nn.ReLU())
        rows = [nn.Conv2d(width, width, 3, 2, 1) for _ in strides[1:]]
        self.stages = nn.ModuleList(nn.Sequential(row, nn.BatchNorm2d(width), nn.ReLU()) for row in rows)
        names = ["stem", *(f"stages.{at}" for at in range(len(rows)))]
        self.feature_info = [
            dict(num_chs=width, reduction=stride, module=name) for stride, name in zip(strides, names, strict=True)
        ]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def detector(name: str, num_classes: int = 3, **options):
    torch.manual_seed(0)
    sizes = dict(width=32) | ({} if name in DENSE else dict(hidden=16)) | _FEW.get(name, {})
    model = create_detector(Trunk(), name, num_classes, **(sizes | options))
    if hasattr(model, "rpn_head"):  # fewer, for the sake of time
        model.rpn_head.kept = dict.fromkeys((True, False), replace(model.rpn_head.kept[True], of_image=100))
        model.roi_head.sampler = replace(model.roi_head.sampler, count=64)
    return model


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(3, *size) for size in sizes]


def target(size: tuple[int, int], *boxes: tuple[float, ...], labels: list[int] | None = None, **more):
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(rows), *size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, rows.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.tensor([0] * len(rows) if labels is None else labels, dtype=torch.int64)
    return {"boxes": rows, "labels": labels, "masks": masks, **more}


SIZE = (61, 90)
WITH = target(SIZE, (5, 6, 50, 40), (30, 10, 80, 60), labels=[0, 2])
WITHOUT = target(SIZE)
CROWD = target(SIZE, (5, 6, 50, 40), iscrowd=torch.tensor([True]))
