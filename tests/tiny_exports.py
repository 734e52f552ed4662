"""Networks that every runtime writes in a moment, and files of one."""

from pathlib import Path

import torch
from torch import nn

from convattn.deploy.formats import formats
from convattn.deploy.metadata import describe, seal
from convattn.deploy.runtimes.runtime import Request
from toys import randomise_norms

SIZE = (3, 16, 12)


class TinyNet(nn.Sequential):
    """A convolution, a linear layer for each pixel, and a classifier of three."""

    num_classes = 3
    in_chans = 3

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 32),
            nn.GELU(),
            nn.Linear(32, 3),
        )
        self.pretrained_cfg = dict(
            architecture="tiny",
            input_size=SIZE,
            mean=(0.5, 0.4, 0.3),
            std=(0.1, 0.2, 0.3),
            interpolation="bilinear",
            crop_pct=0.8,
            crop_mode="squash",
            label_names=("ant", "bee", "cat"),
        )


def tiny_net() -> TinyNet:
    torch.manual_seed(1)
    return TinyNet().eval()


def tiny(norm: bool = False) -> nn.Module:
    """A classifier that is exported in a moment."""
    first = [nn.Conv2d(3, 4, 3, stride=2), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU()]
    network = nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    randomise_norms(network)
    network.num_classes = 5
    return network.eval()


def names(folder: Path) -> list[str]:
    """Of the files in a folder, in order."""
    return sorted(file.name for file in folder.iterdir())


def write(
    folder: Path,
    format: str,
    dynamic: str = "batch",
    precision: str = "fp32",
    batch: int = 2,
    model: nn.Module | None = None,
    size: tuple[int, int, int] = SIZE,
) -> Path:
    """A file of `model`, by default the tiny network, without metadata."""
    path = folder / f"{format}_{dynamic}_{precision}_{batch}{formats()[format].SUFFIX}"
    formats()[format].write(model or tiny_net(), Request(torch.randn(batch, *size), dynamic, precision), path)
    return path


def write_sealed(
    folder: Path,
    format: str,
    dynamic: str = "batch",
    precision: str = "fp32",
    batch: int = 2,
    model: nn.Module | None = None,
    size: tuple[int, int, int] = SIZE,
) -> Path:
    """The same, and it describes itself."""
    model = model or tiny_net()
    path = write(folder, format, dynamic, precision, batch, model, size)
    with torch.inference_mode():
        outputs = model(torch.zeros(1, *size))
    described = describe(
        model, outputs, input_size=size, precision=precision, dynamic=dynamic, format=format, batch=batch
    )
    seal(format, path, described)
    return path
