import dataclasses
import json
import math

import pytest

from convattn.classification.options import ClassificationOptions
from convattn.recipes import RECIPES
from convattn.training.config import (
    ConfigError,
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    ScheduleConfig,
)
from convattn.training.config_json import config_from_json, config_to_json


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_survives_json(name):
    config = RECIPES[name]()
    assert config_from_json(config_to_json(config)) == config


def test_tuples_and_options_survive_json():
    config = RunConfig(
        model=ModelConfig("smt_nano", options={"dims": (4, 8, 8, 8), "stacking": "half"}),
        optimizer=OptimizerConfig(betas=(0.8, 0.9)),
    )
    assert config_from_json(config_to_json(config)) == config


def test_fields_left_out_take_their_defaults():
    assert config_from_json('{"schedule": {"epochs": 7}}') == RunConfig(schedule=ScheduleConfig(epochs=7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schedul": {}}, r"unknown field schedul; nearest: schedule"),
        ({"schedule": {"epoch": 3}}, r"unknown field schedule.epoch; nearest: epochs"),
        ({"task": {"augmentation": {"rotations": 3}}}, r"unknown field task.augmentation.rotations; nearest: rotation"),
        ({"schedule": {"epochs": "3"}}, r"schedule.epochs '3' must be int"),
        ({"loop": {"compile": 1}}, r"loop.compile 1 must be bool"),
        ({"loop": {"seed": True}}, r"loop.seed True must be int"),
        ({"loop": {"precision": "fp8"}}, r"loop.precision 'fp8' is unknown; choose one of fp32, bf16, fp16"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer.betas \[0.9\] must be a list of 2 numbers"),
        ({"task": {"augmentation": {"rotation": 500}}}, r"task.augmentation.rotation 500 must be between 0 and 180"),
        (
            {"task": {"distillation": {"teacher": "smt_tiny", "temperature": math.inf}}},
            r"task.distillation.temperature inf must be a finite number",
        ),
        ({"data": 3}, r"data 3 must be an object with fields"),
        ({"model": {"options": 3}}, r"model.options 3 must be an object"),
    ],
)
def test_a_bad_file_is_refused_by_field(content, message):
    with pytest.raises(ConfigError, match=message):
        config_from_json(json.dumps(content).replace("Infinity", "1e999"))


def test_text_that_is_no_json_is_refused():
    with pytest.raises(ConfigError, match=r"not a configuration: Expecting value"):
        config_from_json("epochs: 3")


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ModelConfig, dict(drop_rate=1.0), r"model.drop_rate 1.0 must be at least 0 and below 1"),
        (ModelConfig, dict(drop_path_rate=-0.1), r"model.drop_path_rate -0.1 must be"),
        (DataConfig, dict(image_size=2), r"data.image_size 2 must be 4 or more"),
        (ClassificationOptions, dict(crop_ratio=0.0), r"task.crop_ratio 0.0 must be above 0, at most 1"),
        (DataConfig, dict(batch_size=0), r"data.batch_size 0 must be 1 or more"),
        (DataConfig, dict(workers=-1), r"data.workers -1 must be 0 or more"),
        (ClassificationOptions, dict(mixup=math.inf), r"task.mixup inf must be a finite number"),
        (ClassificationOptions, dict(mixup=0.2, mix_epochs=0), r"task.mix_epochs 0 must be 1 or more; for no mixing"),
        (ClassificationOptions, dict(mixup=-1.0), r"task.mixup -1.0 must be 0 or more"),
        (
            ClassificationOptions,
            dict(mixup=0.2, mix_probability=2.0),
            r"task.mix_probability 2.0 must be between 0 and 1",
        ),
        (
            RunConfig,
            dict(task=ClassificationOptions(mixup=0.2), data=DataConfig(batch_size=7)),
            r"data.batch_size 7 must be even with task.mixup or task.cutmix; use 8",
        ),
        (ClassificationOptions, dict(mix_epochs=3), r"have no effect without task.mixup or task.cutmix"),
        (
            ClassificationOptions,
            dict(mixup=0.2, cutmix_probability=0.9),
            r"task.cutmix_probability has no effect unless both",
        ),
        (OptimizerConfig, dict(name="adamv"), r"optimizer.name 'adamv' is unknown; nearest: adam"),
        (OptimizerConfig, dict(lr=0.0), r"optimizer.lr 0.0 must be above 0"),
        (OptimizerConfig, dict(lr=math.inf), r"optimizer.lr inf must be a finite number"),
        (OptimizerConfig, dict(layer_decay=5.0), r"optimizer.layer_decay 5.0 must be above 0, at most 1"),
        (OptimizerConfig, dict(eps=-1.0), r"optimizer.eps -1.0 must be 0 or more"),
        (OptimizerConfig, dict(betas=(0.9, 1.0)), r"optimizer.betas 0.9, 1.0 must be at least 0 and below 1"),
        (OptimizerConfig, dict(name="sgd", momentum=5.0), r"optimizer.momentum 5.0 must be at least 0 and below 1"),
        (OptimizerConfig, dict(lr_batch_size=0), r"optimizer.lr_batch_size 0 must be 1 or more"),
        (OptimizerConfig, dict(weight_decay=-1.0), r"optimizer.weight_decay -1.0 must be 0 or more"),
        (OptimizerConfig, dict(clip_grad=0.0), r"optimizer.clip_grad 0.0 must be above 0"),
        (OptimizerConfig, dict(name="sgd", betas=(0.9, 0.9)), r"optimizer.betas has no effect on sgd, which has none"),
        (OptimizerConfig, dict(momentum=0.9), r"optimizer.momentum has no effect on adamw, which has none"),
        (ScheduleConfig, dict(epochs=0), r"schedule.epochs 0 must be 1 or more"),
        (
            ScheduleConfig,
            dict(epochs=3, warmup_epochs=3),
            r"schedule.warmup_epochs 3 must be .* below the 3",
        ),
        (ScheduleConfig, dict(warmup_lr=math.inf), r"schedule.warmup_lr inf must be a finite number"),
        (ScheduleConfig, dict(min_lr=-1.0), r"schedule.min_lr -1.0 must be 0 or more"),
        (ScheduleConfig, dict(name="constant", min_lr=0.1), r"schedule.min_lr has no effect on the constant schedule"),
        (
            RunConfig,
            dict(schedule=ScheduleConfig(min_lr=5.0)),
            r"schedule.min_lr 5.0 must be at most optimizer.lr 0.001",
        ),
        (LoopConfig, dict(seed=-1), r"loop.seed -1 must be between 0 and 4294967295"),
        (ClassificationOptions, dict(label_smoothing=1.0), r"task.label_smoothing 1.0 must be at least 0, below 1"),
        (LoopConfig, dict(ema_decay=1.0), r"loop.ema_decay 1.0 must be between 0 and 1"),
        (LoopConfig, dict(accumulation=0), r"loop.accumulation 0 must be 1 or more"),
        (OutputConfig, dict(keep_checkpoints=0), r"output.keep_checkpoints 0 must be 1 or more"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(kind, fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        kind(**fields)
    assert "\n" not in str(caught.value)


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().schedule.epochs = 3
