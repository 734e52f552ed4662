"""A second task, for tests alone: from a picture to one number a pixel, here the mean of its colours."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from convattn.data.folder import images_below
from convattn.data.images import read_image
from convattn.task import Batch, Meter, Metric, Prediction, RoomWords, Task, TaskOptions, TaskRoom


@dataclass(frozen=True)
class MapOptions(TaskOptions):
    kind: ClassVar[str] = "map"
    weight: float = 1.0
    """Of the absolute error beside the squared one."""


class MapNet(nn.Sequential):  # (B, 3, H, W) -> (B, 1, H, W)
    task_kind = "map"

    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, 1, 1)
        self.built_as = {"task": "map", "name": "map_net", "options": {"width": width}}
        self.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}


class Pictures:
    """The pictures below a folder, each with the mean of its colours, (1, H, W) from 0 to 1."""

    def __init__(self, folder):
        self.paths = [f"{folder}/{name}" for name in sorted(images_below(folder))]

    def __len__(self):
        return len(self.paths)

    def read(self, index):
        return read_image(self.paths[index])

    def target(self, index):
        return (pil_to_tensor(self.read(index)) / 255).mean(0, keepdim=True)


class MapMeter(Meter):
    def __init__(self):
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, outputs, batch):
        error = (outputs - batch.targets).abs()
        self.sums = self.sums + torch.tensor([error.numel(), error.double().sum()])

    def parts(self):
        return {"sums": self.sums}

    def result(self, parts):
        count, total = parts["sums"]
        return {"mae": (total / count).item()}

    def findings(self, parts):
        figures = self.result(parts)
        return SimpleNamespace(
            figures=lambda: figures,
            as_json=lambda: figures,
            lines=lambda: [("error", f"{figures['mae']:.4f}")],
            tables=lambda: [],
            page=dict,
        )


@dataclass(frozen=True)
class MapTask(Task):
    options: MapOptions

    def losses(self, model, batch):
        error = model(batch.images).float() - batch.targets
        return {"squared": error.square().mean(), "absolute": self.options.weight * error.abs().mean()}

    def blank(self, device):
        return Batch(torch.zeros(2, 3, 16, 16, device=device), torch.zeros(2, 1, 16, 16, device=device), ["", ""])

    def head(self, model):
        return model.head

    def meter(self):
        return MapMeter()


@dataclass(frozen=True)
class MapPrediction(Prediction):
    map: torch.Tensor  # (H, W)

    def as_json(self):
        return {"mean": self.map.mean().item()}

    def line(self):
        return f"mean {self.map.mean().item():.3f}"

    def draw(self, picture):
        return to_pil_image(self.map.clamp(0, 1)).convert("RGB")


class MapRoom(TaskRoom):
    kind = "map"
    error = Metric("mae", "Mean error", greater_is_better=False, digits=4, lowest=0)
    words = RoomWords(MapOptions, TaskOptions, TaskOptions, (error,))

    def create(self, name, **options):
        return MapNet(**options)

    def open_training(self, config):
        return Pictures(f"{config.data.source}/train"), Pictures(f"{config.data.source}/val")

    def open_evaluation(self, source, model, options, run=None):
        return Pictures(f"{source}/val")

    def training_transform(self, model, config):
        return _flipped

    def evaluation_transform(self, model, options=None):
        return _plain

    def rebuild(self, config, model, state):
        return MapTask(config.task)

    def examine(self, model, data, source, options):
        return MapMeter()

    @torch.inference_mode()
    def predict(self, model, pictures, options, on_part=None):
        maps = [model(_plain(picture, None)[0][None])[0, 0] for picture in pictures]
        return [MapPrediction(each) for each in maps]

    def agreement(self, got, want):
        return {"within 0.01": ((got[0] - want[0]).abs() < 0.01).double().mean().item()}


def _plain(picture, target):
    return (pil_to_tensor(picture) / 255 - 0.5) / 0.5, target


def _flipped(picture, target):
    image, target = _plain(picture, target)
    return (image.flip(-1), target.flip(-1)) if torch.rand(()) < 0.5 else (image, target)
