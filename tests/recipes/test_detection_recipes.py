"""The recipes of detectors on COCO against the figures of the papers and their configurations."""

import re
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from convattn.backbones.levels import FormNote
from convattn.backbones.registry import create_model
from convattn.detection.create import create_detector
from convattn.detection.variation import Variation
from convattn.recipes import RECIPES
from convattn.training.build import build_optimizer, build_schedule

COCO = [name for name in RECIPES if "_coco_" in name]
UPDATES_PER_EPOCH = 7_330  # 117,266 images that show something, 16 an update

# Detector and backbone: all parameters with 80 classes.
TOTALS = {
    "mask_rcnn_smt_small": 42_188_976,
    "cascade_mask_rcnn_smt_small": 80_024_178,
    "retinanet_smt_small": 32_271_540,
    "atss_smt_small": 30_137_114,
    "sparse_rcnn_smt_small": 104_135_528,
    "dino_smt_small": 42_006_284,
    "mask_rcnn_smt_base": 51_675_376,
    "mask_rcnn_nextvit_small": 51_124_912,
    "mask_rcnn_nextvit_base": 64_180_400,
    "mask_rcnn_nextvit_large": 77_235_888,
    "mask_rcnn_groupmixformer_tiny": 30_787_016,
    "retinanet_groupmixformer_tiny": 20_238_796,
    "cascade_mask_rcnn_groupmixformer_tiny": 68_622_218,
    "mask_rcnn_groupmixformer_small": 42_230_224,
    "mask_rcnn_groupmixformer_base": 65_568_016,
    "faster_rcnn_cotnet_50": 39_732_232,
    "cascade_rcnn_cotnet_50": 69_997_430,
    "mask_rcnn_cotnet_50": 42_376_536,
    "cascade_mask_rcnn_cotnet_50": 72_641_734,
    "faster_rcnn_resnet50_das": 53_099_622,
}


@cache
def backbone_of(name: str, options: tuple) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FormNote)
        return create_model(name, num_classes=0, **dict(options))


@cache
def built(backbone: str, options: tuple, detector: str, **task) -> nn.Module:
    """The detector of a recipe, without weights; built once for all that share it."""
    with torch.device("meta"):
        return create_detector(backbone_of(backbone, options), detector, **task)


def detector_of(config) -> nn.Module:
    task = config.task
    return built(
        config.model.name,
        tuple(config.model.options.items()),
        task.detector,
        style=task.style,
        box_head=task.box_head,
        width=task.width,
        hidden=task.hidden,
        frozen_stages=task.frozen_stages,
        frozen_norms=task.frozen_norms,
    )


QUICK = {*TOTALS, "faster_rcnn_cotnext_50", "cascade_mask_rcnn_se_cotnetd_50"}  # the rest differs in size alone


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.rpartition("_coco_")[0] in QUICK else pytest.mark.slow)
        for name in COCO
        if not name.endswith("_1x") or name.replace("_1x", "_3x") not in RECIPES  # built by the same words
    ],
)
def test_the_detector_of_a_recipe_weighs_what_is_counted_and_decays_where_the_papers_do(name):
    config = RECIPES[name]()
    model = detector_of(config)
    total = TOTALS.get(name.rpartition("_coco_")[0])
    assert total in (None, sum(parameter.numel() for parameter in model.parameters()))
    names = {parameter: called for called, parameter in model.named_parameters()}
    groups = build_optimizer(model, config, num_processes=1).param_groups
    spared = {names[p] for group in groups if not group["weight_decay"] for p in group["params"]}
    learning = [called for called, parameter in model.named_parameters() if parameter.requires_grad]
    assert spared == expected_to_be_spared(name, model) & {*learning}
    assert {group["weight_decay"] for group in groups} <= {0.0, config.optimizer.weight_decay}


WHOLLY_DECAYING = ("retinanet_smt", "atss_smt", "cascade_mask_rcnn_smt", "sparse_rcnn_smt")


def expected_to_be_spared(name: str, model: nn.Module) -> set[str]:
    detector = name.rpartition("_coco_")[0]
    everything_decays = detector.startswith(WHOLLY_DECAYING) or "das" in detector
    if everything_decays:
        return set()
    if detector.startswith("mask_rcnn_smt") or "nextvit" in detector:  # by the authors' names
        theirs = {called: model.official_names.to_theirs(called) for called, _ in model.named_parameters()}
        return {called for called, official in theirs.items() if "norm" in official}
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    norms = [(called, module) for called, module in model.named_modules() if isinstance(module, kinds)]
    return {f"{called}.{leaf}" for called, module in norms for leaf, _ in module.named_parameters(recurse=False)}


def test_every_total_that_is_known_is_that_of_a_recipe():
    assert {name.rpartition("_coco_")[0] for name in COCO} >= {*TOTALS}


def test_the_page_has_these_totals_and_the_published_figures():
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| .*, .* \| [0-9,]{10,11} \|", line)]
    assert len(rows) == 19
    assert {int(row[1].replace(",", "")) for row in rows} <= {*TOTALS.values()}
    results = "".join(RECIPES[name].__doc__ for name in COCO)
    for name, *_, box, mask, _, _ in rows:
        for figures, kind in ((box, "box"), (mask, "mask")):
            for figure in figures.split(", ") if figures != "–" else ():
                assert f"{figure} % {kind} AP" in results, name


# The rate at updates 0, 250 (500 for 1,000 of warm-up) and behind the warm-up; where it falls, and to what.
SCHEDULES = {
    "mask_rcnn_smt_small_coco_1x": (2e-4, 500, 1e-3, [8, 11, 12]),
    "mask_rcnn_smt_base_coco_3x": (2e-4, 500, 1e-3, [27, 33, 36]),
    "retinanet_smt_small_coco_3x": (1e-4, 500, 1e-3, [27, 33, 36]),
    "sparse_rcnn_smt_small_coco_3x": (2.5e-5, 500, 1e-3, [27, 33, 36]),
    "mask_rcnn_nextvit_large_coco_1x": (1e-4, 500, 1e-6, [8, 11, 12]),
    "mask_rcnn_nextvit_small_coco_3x": (1e-4, 500, 1e-6, [27, 33, 36]),
    "cascade_rcnn_cotnet_101_coco_90k": (0.02, 1_000, 1e-3, [60_000, 80_000, 90_000]),
    "mask_rcnn_groupmixformer_base_coco_3x": (1e-4, 500, 1e-3, [24, 33, 36]),
    "faster_rcnn_resnet50_das_coco_1x": (0.02, 500, 1e-3, [8, 11, 12]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rate_runs_as_in_the_papers(name):
    lr, warmup, factor, (first, second, end) = SCHEDULES[name]
    config = RECIPES[name]()
    optimizer = build_optimizer(nn.Linear(2, 2), _without_names(config), num_processes=1)
    schedule = build_schedule(optimizer, config, UPDATES_PER_EPOCH, num_processes=1)
    unit = 1 if config.schedule.updates else UPDATES_PER_EPOCH
    first, second, end = first * unit, second * unit, end * unit
    assert config.schedule.length(UPDATES_PER_EPOCH) == end

    def rate(updates: int) -> float:
        schedule.step_update(updates)
        return optimizer.param_groups[0]["lr"]

    for updates in (0, 1, warmup // 2, warmup - 1, warmup, first - 1, first, second - 1, second, end - 1):
        steps = 0.1 ** ((updates >= first) + (updates >= second))
        warming = factor + (1 - factor) * min(1.0, updates / warmup)
        assert rate(updates) == pytest.approx(lr * steps * warming, rel=1e-9), updates


def _without_names(config):
    return replace(config, optimizer=replace(config.optimizer, no_decay=()))


@pytest.mark.parametrize("name", COCO)
def test_batch_images_and_result_are_those_of_the_papers(name):
    config, text = RECIPES[name](), " ".join(RECIPES[name].__doc__.split())
    assert config.data.batch_size * config.loop.accumulation == config.optimizer.lr_batch_size == 16
    assert not config.task.without_objects
    assert config.task.scale == (1333, 800)
    assert config.task.variation.longest_side == 1333 and config.task.variation.flip == 0.5
    clip, backbone = {"sparse_rcnn": (1.0, None), "dino": (0.1, 0.1)}.get(config.task.detector, (None, None))
    assert (config.optimizer.clip_grad, config.optimizer.backbone_lr) == (clip, backbone)
    assert config.loop.ema_decay is None
    assert "Not run here." in text
    assert ("% box AP" in text) != ("none that is known to us" in text)
    assert ("% mask AP" in text) == ("% box AP" in text and config.task.masks and not _mask_unknown(name))


def _mask_unknown(name: str) -> bool:
    return name.startswith("cascade_mask_rcnn_groupmixformer")


# Drop path, frozen parts, frozen norms, precision, norms over all processes.
SETTINGS = {
    "mask_rcnn_smt_small_coco_3x": (0.2, 0, False, "fp32", False),
    "mask_rcnn_smt_base_coco_1x": (0.2, 0, False, "fp32", False),
    "mask_rcnn_smt_base_coco_3x": (0.3, 0, False, "fp32", False),
    "cascade_mask_rcnn_smt_small_coco_3x": (0.2, 0, False, "fp32", True),
    "mask_rcnn_nextvit_small_coco_1x": (0.1, 2, True, "fp16", False),
    "mask_rcnn_nextvit_large_coco_3x": (0.2, 2, True, "fp16", False),
    "faster_rcnn_cotnext_50_coco_90k": (0.0, 2, False, "fp32", True),
    "mask_rcnn_groupmixformer_tiny_coco_3x": (0.1, 0, False, "fp32", True),
    "faster_rcnn_resnet50_das_coco_1x": (0.0, 2, True, "fp32", False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_frozen_dropped_and_rounded_is_as_in_the_papers(name):
    config = RECIPES[name]()
    model, task, loop = config.model, config.task, config.loop
    found = (model.drop_path_rate, task.frozen_stages, task.frozen_norms, loop.precision, loop.sync_batch_norm)
    assert found == SETTINGS[name]


def test_images_are_varied_as_in_the_papers():
    once, thrice = Variation(), Variation(short_sides=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), crop=0.5)
    varied = {name: RECIPES[name]().task.variation for name in COCO}
    for name, variation in varied.items():
        if "cotnet" in name or "cotnext" in name:
            masks = "mask" in name
            sides = (640, 672, 704, 736, 768, 800) if masks else (640, 800)
            assert variation == Variation(short_sides=sides, between=not masks, antialias=True)
        else:
            assert variation == (thrice if name.endswith("3x") else once), name


# Box and mask AP as the tables have them.
FIGURES = {
    "mask_rcnn_smt_small_coco_3x": ("49.0", "43.4"),
    "mask_rcnn_smt_base_coco_3x": ("49.8", "44.0"),
    "cascade_mask_rcnn_smt_small_coco_3x": ("51.9", "44.7"),
    "retinanet_smt_small_coco_3x": ("47.3",),
    "atss_smt_small_coco_3x": ("49.9",),
    "sparse_rcnn_smt_small_coco_3x": ("50.2",),
    "dino_smt_small_coco_3x": ("54.0",),
    "mask_rcnn_nextvit_small_coco_1x": ("45.9", "41.8"),
    "mask_rcnn_nextvit_large_coco_3x": ("50.2", "44.8"),
    "mask_rcnn_groupmixformer_base_coco_3x": ("51.5", "45.9"),
    "faster_rcnn_cotnet_50_coco_90k": ("43.50",),
    "cascade_mask_rcnn_se_cotnetd_101_coco_90k": ("49.24", "42.38"),
    "faster_rcnn_resnet50_das_coco_1x": ("39.7",),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_result_is_the_published_one(name):
    result = next(line for line in RECIPES[name].__doc__.splitlines() if line.startswith("Result: "))
    told = ", ".join(f"{figure} % {kind} AP" for figure, kind in zip(FIGURES[name], ("box", "mask"), strict=False))
    assert result.startswith(f"Result: {told} on the validation images (")
