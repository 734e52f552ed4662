"""Images a second that worker processes load, beside torchvision's and timm's loaders on the same files.

python benchmarks/loading.py --data PHOTOGRAPHS
python benchmarks/loading.py --data CIFAR --size 32 --images 10000

Images lie anywhere below the folder; they are taken in even steps, or several times over. The transform is timm's of
training in all three (random crop, mirroring, normalisation), so that what differs is reading, decoding and the loader
around them. Rounds are interleaved; medians are printed.
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader, create_transform
from torchvision.datasets import ImageFolder

from convattn.data.folder import images_below
from convattn.data.loader import SeededSamples, TrainingLoader
from convattn.data.sources import open_evaluation
from convattn.data.transforms import PictureAlone

_CLASSES = 10
_LEFT_OUT = 4  # batches at the beginning, while the workers start


def ours(folder: Path, transform: Callable, batch_size: int, workers: int) -> Iterator[int]:
    loader = TrainingLoader(
        SeededSamples(open_evaluation(folder), PictureAlone(transform), 0), batch_size, workers=workers
    )
    return (len(batch.images) for batch in loader.batches(0))


def torchvisions(folder: Path, transform: Callable, batch_size: int, workers: int) -> Iterator[int]:
    data = ImageFolder(folder, transform)
    loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    return (len(images) for images, _ in loader)


def timms(folder: Path, transform: Callable, batch_size: int, workers: int) -> Iterator[int]:
    data = create_dataset("", str(folder))
    options = dict(is_training=True, num_workers=workers, use_prefetcher=False, device=torch.device("cpu"))
    loader = create_loader(data, (3, 8, 8), batch_size, **options)
    data.transform = transform  # the very same instead of the one it made
    return (len(images) for images, _ in loader)


LOADERS = {"convattn": ours, "torchvision": torchvisions, "timm": timms}


def lay_out(source: Path, images: int, target: Path) -> None:
    """Links to so many images of `source` in a few class folders, for every loader the same."""
    names = list(images_below(source))
    for at in range(images):
        name = names[at * len(names) // images if len(names) > images else at % len(names)]
        link = target / f"class{at % _CLASSES}" / f"{at:06d}{Path(name).suffix}"
        link.parent.mkdir(exist_ok=True)
        os.symlink((source / name).resolve(), link)


def images_per_second(batches: Iterable[int]) -> float:
    """Without the batches at the beginning."""
    iterator = iter(batches)
    for _ in range(_LEFT_OUT):
        next(iterator)
    start = time.perf_counter()
    return sum(iterator) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images, however deep")
    parser.add_argument("--size", type=int, default=224, help="side of the input, pixels")
    parser.add_argument("--images", type=int, default=1000, help="in a round")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    if options.data is None:
        print("no --data: nothing is loaded; name a folder of images")
        return
    transform = create_transform(options.size, is_training=True, color_jitter=None, interpolation="bicubic")
    names = list(LOADERS)
    rates: dict[str, list[float]] = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        lay_out(options.data, options.images, Path(folder))
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:  # each is first, and last, in turn
                batches = LOADERS[name](Path(folder), transform, options.batch_size, options.workers)
                rates[name].append(images_per_second(batches))
                del batches
                gc.collect()  # ends the worker processes
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        print(
            f"{name:12}{medians[name]:8,.0f} images/s ({spread})   convattn {medians['convattn'] / medians[name]:.2f} ×"
        )


if __name__ == "__main__":
    main()
