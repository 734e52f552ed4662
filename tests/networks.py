"""Other people's networks, small, with the places that are expected in them."""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn

from toys import randomise_norms


class Plain(nn.Module):
    """What a beginner writes: one ReLU and one pool for everything, no stages by name, a head that fits one size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.bn3 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(16 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(self.conv3(x)))
        return self.fc(x.flatten(1))


@dataclass(frozen=True)
class Network:
    build: Callable[[], nn.Module]
    size: tuple[int, int]
    stages: dict[str, int]  # place -> channels
    num_blocks: int
    layout: str = "NCHW"


def timm_model(name: str, **options):
    return lambda: timm.create_model(name, num_classes=5, **options)


def torchvision_model(name: str):
    return lambda: getattr(torchvision.models, name)(num_classes=5)


NETWORKS = {
    "timm resnet": Network(
        timm_model("resnet10t"),
        (64, 64),
        {"layer1.0": 64, "layer2.0": 128, "layer3.0": 256, "layer4.0": 512},
        4,
    ),
    "torchvision resnet": Network(
        torchvision_model("resnet18"),
        (64, 64),
        {"layer1.1": 64, "layer2.1": 128, "layer3.1": 256, "layer4.1": 512},
        8,
    ),
    "timm regnet": Network(timm_model("regnetx_002"), (64, 64), {"s1": 24, "s2": 56, "s3": 152, "s4": 368}, 13),
    "torchvision regnet": Network(
        torchvision_model("regnet_y_400mf"),
        (64, 64),
        {
            "trunk_output.block1.block1-0": 48,
            "trunk_output.block2.block2-2": 104,
            "trunk_output.block3.block3-5": 208,
            "trunk_output.block4.block4-5": 440,
        },
        16,
    ),
    "timm convnext": Network(
        timm_model("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
        (64, 64),
        {"stages.0": 8, "stages.1": 16, "stages.2": 24, "stages.3": 32},
        5,
    ),
    "torchvision convnext": Network(
        torchvision_model("convnext_tiny"),
        (64, 64),
        {"features.1.2": 96, "features.3.2": 192, "features.5.8": 384, "features.7.2": 768},
        18,
    ),
    "timm mobilenetv2": Network(
        timm_model("mobilenetv2_035"),
        (64, 64),
        {"blocks.0.0": 8, "blocks.1.1": 8, "blocks.2.2": 16, "blocks.4.2": 32, "blocks.6.0": 112},
        17,
    ),
    "torchvision mobilenetv2": Network(
        torchvision_model("mobilenet_v2"),
        (64, 64),
        {
            "features.1": 16,
            "features.3": 24,
            "features.6": 32,
            "features.10": 64,
            "features.13": 96,
            "features.16": 160,
            "features.17": 320,
        },
        17,
    ),
    "timm mobilenetv3": Network(
        timm_model("mobilenetv3_small_050"),
        (64, 64),
        {"blocks.0.0": 8, "blocks.1.1": 16, "blocks.3.1": 24, "blocks.5.0": 288},
        11,
    ),
    "torchvision mobilenetv3": Network(
        torchvision_model("mobilenet_v3_small"),
        (64, 64),
        {"features.1": 16, "features.3": 24, "features.6": 40, "features.8": 48, "features.11": 96},
        11,
    ),
    "timm efficientnet": Network(
        timm_model("efficientnet_b0"),
        (64, 64),
        {"blocks.0.0": 16, "blocks.1.1": 24, "blocks.2.1": 40, "blocks.4.2": 112, "blocks.6.0": 320},
        16,
    ),
    "torchvision efficientnet": Network(
        torchvision_model("efficientnet_b0"),
        (64, 64),
        {
            "features.1.0": 16,
            "features.2.1": 24,
            "features.3.1": 40,
            "features.4.2": 80,
            "features.5.2": 112,
            "features.6.3": 192,
            "features.7.0": 320,
        },
        16,
    ),
    "timm swin": Network(
        timm_model(
            "swin_tiny_patch4_window7_224",
            img_size=64,
            window_size=4,
            embed_dim=16,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 2, 2),
        ),
        (64, 64),
        {"layers.0": 16, "layers.1": 32, "layers.2": 64, "layers.3": 128},
        5,
        "NHWC",
    ),
    "torchvision swin": Network(
        lambda: torchvision.models.SwinTransformer([4, 4], 16, [1, 1, 2, 1], [1, 2, 2, 2], [4, 4], num_classes=5),
        (64, 64),
        {"features.1.0": 16, "features.3.0": 32, "features.5.1": 64, "features.7.0": 128},
        5,
        "NHWC",
    ),
    "timm pvt": Network(
        timm_model("pvt_v2_b0", depths=(1, 1, 2, 1)),
        (64, 64),
        {"stages.0": 32, "stages.1": 64, "stages.2": 160, "stages.3": 256},
        5,
    ),
    "plain": Network(Plain, (32, 32), {"bn1": 8, "bn2": 8, "bn3": 16}, 0),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network in evaluation mode with random norms, and two images."""
    network = NETWORKS[name]
    model = network.build()
    randomise_norms(model)
    return model.eval(), torch.randn(2, 3, *network.size)
