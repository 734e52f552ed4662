"""Detectors by name: their parts, what they weigh and cost, and the names of their weights."""

import pytest
import torch
from torch import nn

import convattn
from convattn.detection.create import create_detector
from convattn.detection.detector import DenseDetector
from convattn.weights.detectors import from_mmdetection_1, is_mmdetection_1
from detection_golden import load_golden
from tiny_detectors import SIZE, WITH, Trunk, detector, images

SMT = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet", "atss")


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(backbone: str, name: str, **options):
    with torch.device("meta"), pytest.warns() if backbone.startswith("smt") else torch.device("meta"):
        return create_detector(backbone, name, **options)


# Backbone, detector, options: all parameters, and the paper's multiply-adds at 800 × 1280 in billions.
PUBLISHED = [
    ("smt_small", "mask_rcnn", {}, 42_188_976, 265.0),
    ("smt_small", "cascade_mask_rcnn", dict(box_head="4conv1fc"), 80_024_178, 743.3),
    ("smt_small", "retinanet", {}, 32_271_540, 246.5),
    ("smt_small", "atss", {}, 30_137_114, 213.4),
    ("smt_base", "mask_rcnn", {}, 51_675_376, 326.8),
    ("nextvit_small", "mask_rcnn", {}, 51_124_912, 289.0),
    ("nextvit_base", "mask_rcnn", {}, 64_180_400, 339.3),
    ("nextvit_large", "mask_rcnn", {}, 77_235_888, 389.6),
    ("groupmixformer_tiny", "mask_rcnn", {}, 30_787_016, None),
    ("groupmixformer_tiny", "retinanet", {}, 20_238_796, None),
    ("groupmixformer_tiny", "cascade_mask_rcnn", dict(box_head="4conv1fc"), 68_622_218, None),
    ("groupmixformer_small", "mask_rcnn", {}, 42_230_224, None),
    ("groupmixformer_base", "mask_rcnn", {}, 65_568_016, None),
    ("cotnet_50", "faster_rcnn", dict(style="detectron2"), 39_732_232, None),
    ("cotnet_50", "cascade_rcnn", dict(style="detectron2"), 69_997_430, None),
    ("cotnet_50", "mask_rcnn", dict(style="detectron2"), 42_376_536, None),
    ("cotnet_50", "cascade_mask_rcnn", dict(style="detectron2"), 72_641_734, None),
    ("timm:resnet50", "faster_rcnn", {}, 41_753_056, None),
]
IDS = [f"{backbone}-{name}" for backbone, name, *_ in PUBLISHED]
