"""How often an INT8 file of OpenVINO names the class that the float32 model names, and what each layer costs.

Without --runs every family's smallest model is trained first, by the recipe and script of small_images.py. Agreement is
on --images test images; ranges are found on 300 training images.

Examples:
    python benchmarks/int8_agreement.py --data cifar10
    python benchmarks/int8_agreement.py --data cifar10 --runs runs/smt_nano runs/cotnet_nano
    python benchmarks/int8_agreement.py --full-size nextvit_small --photographs photos    # untrained, layer by layer
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import convattn
from convattn.data.loader import Samples
from convattn.data.sources import open_data
from convattn.data.transforms import PictureAlone, transforms_for
from convattn.deploy.inputs import read_calibration
from convattn.deploy.quantize import QuantisedLayer
from convattn.deploy.runtimes import openvino
from convattn.deploy.runtimes.runtime import Request
from convattn.model_files import load_model

_FAMILIES = ("smt_nano", "groupmixformer_nano", "nextvit_nano", "cotnet_nano", "resnet18_das_cifar")
_BATCH = 50


@dataclass(frozen=True)
class Options:
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """CIFAR-10 or the like: DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE."""
    runs: tuple[Path, ...] = ()
    """Folders of finished runs on it; without them models are trained."""
    training_images: int = 40000
    """How many images each model is trained on, where it is."""
    images: int = 2000
    """Test images to compare on."""
    full_size: tuple[str, ...] = ()
    """Models as they are initialised, to be shown layer by layer."""
    photographs: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """For --full-size: images; the first half finds ranges, the other is compared on."""


def main(options: Options) -> None:
    console = Console(width=160)
    if options.data is None and not options.full_size:
        console.print("neither --data nor --full-size: there is nothing to quantise")
    if options.data is not None:
        with tempfile.TemporaryDirectory() as scratch:
            runs = options.runs or [_trained(name, options, Path(scratch)) for name in _FAMILIES]
            table = Table("run", "top-1", "of int8", "agreement", "error of logits", "layers", "in float32")
            for run in runs:
                table.add_row(*_agreement(run, options.data, options.images))
            console.print(table)
    for name in options.full_size:
        if options.photographs is None:
            raise SystemExit("--full-size needs --photographs DIR")
        _show_layers(name, options.photographs, console)


def _trained(name: str, options: Options, folder: Path) -> Path:
    from small_images import train_for

    train_for(name, str(options.data), options.training_images, 0, folder / name)
    return folder / name / "run"


def _agreement(run: Path, data: Path, count: int) -> list[str]:
    model = load_model(run / "last.safetensors").eval()
    calibration, _ = _images(model, data, "train", 300)
    images, labels = _images(model, data, "test", count)
    want, got, layers = _compare(model, calibration, images)
    named, said = want.argmax(1), got.argmax(1)
    accuracies = [f"{100 * (guess == labels).float().mean():.2f} %" for guess in (named, said)]
    agreement = f"{100 * (named == said).float().mean():.2f} %"
    kept = sum(layer.kept for layer in layers)
    return [str(run), *accuracies, agreement, _percent(_error(got, want)), str(len(layers)), str(kept)]


def _images(model: nn.Module, data: Path, split: str, count: int) -> tuple[Tensor, Tensor]:
    """So many images, evenly spread, and their labels."""
    samples = Samples(open_data(str(data), split), PictureAlone(transforms_for(model)))
    chosen = [samples[int(index)] for index in np.linspace(0, len(samples) - 1, min(count, len(samples)))]
    return torch.stack([sample.image for sample in chosen]), torch.tensor([sample.label for sample in chosen])


def _compare(model: nn.Module, calibration: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Sequence[QuantisedLayer]]:
    """The logits of the model and of its 8-bit file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        request = Request(images[:2], "batch", "int8", calibration.split(1))
        openvino.write(convattn.fuse(model), request, path)
        run, layers = openvino.open_file(path), openvino.quantisation_report(path)
        with torch.inference_mode():
            want = torch.cat([model(part) for part in images.split(_BATCH)])
        return want, torch.cat([run(part)[0] for part in images.split(_BATCH)]), layers


def _show_layers(name: str, photographs: Path, console: Console) -> None:
    torch.manual_seed(0)
    model = convattn.create_model(name).eval()
    given, _ = read_calibration(model, model.pretrained_cfg["input_size"], photographs)
    images = torch.cat(given)
    half = len(images) // 2
    want, got, layers = _compare(model, images[:half], images[half:])
    table = Table("layer", "operator", "own error", "error of the output by it alone", "in float32")
    for layer in layers:
        errors = (_percent(layer.own_error), _percent(layer.output_error))
        table.add_row(layer.name, layer.kind, *errors, "yes" if layer.kept else "")
    console.print(table)
    kept = sum(layer.kept for layer in layers)
    console.print(
        f"{name}: error of the output {_percent(_error(got, want))}; {kept} of {len(layers)} layers in float32"
    )


def _error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
