"""What SMT-L on ImageNet-22k would ask of 8 and of 256 GPUs: gradients, images, checkpoints.

python benchmarks/scale_estimate.py     # about a minute; needs 5 GB of memory and 1.5 GB of disk

Measured here: the size of a checkpoint (weights, moving average, AdamW) by writing one, the time that takes, and a
training step on the CPU. Assumed, since no GPU is needed to run this: what a GPU does and what a disk takes; the
options change it.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from convattn import count, create_model
from convattn.training.checkpoint import save_checkpoint

_IMAGES, _CLASSES = 14_197_122, 21_841  # of ImageNet-22k: image-net.org, release of fall 2011
_IMAGE_BYTES = 147_897_477_120 / 1_281_167  # ILSVRC2012_img_train.tar over its images
_PEAK = 312e12  # operations/s of an A100 in dense bfloat16: NVIDIA's data sheet
_CPU_IMAGES = 2


def main() -> None:
    """Measure, and print the estimate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128, help="images of a GPU in a step")
    parser.add_argument("--peak", type=float, default=_PEAK, help="operations a second of a GPU")
    parser.add_argument("--used", type=float, default=0.3, help="share of the peak that training reaches")
    parser.add_argument("--disk", type=float, default=1e9, help="bytes a second that a shared disk takes")
    options = parser.parse_args()
    model = create_model("smt_large", num_classes=_CLASSES).train()
    parameters = sum(p.numel() for p in model.parameters())
    macs = count(model, (3, 224, 224)).macs
    step, size, seconds = measure(model)
    print(f"SMT-L with {_CLASSES:,} classes: {parameters / 1e6:.1f} M parameters, {macs / 1e9:.1f} G multiply-adds")
    print(f"step of {_CPU_IMAGES} images on this CPU, float32, {torch.get_num_threads()} thread(s): {step:.1f} s")
    print(f"checkpoint: {size / 1e9:.2f} GB, written, synced and hashed here in {seconds:.1f} s")
    rate = options.peak * options.used / (6 * macs)  # two operations a multiply-add; backward takes twice the forward
    print(f"assumed: {rate:,.0f} images/s a GPU ({options.used:.0%} of {options.peak / 1e12:.0f} T operations/s)")
    table = Table("", *(f"{gpus} GPUs" for gpus in (8, 256)), box=None)
    columns = [estimate(gpus, rate, options.batch_size, parameters, size, options.disk) for gpus in (8, 256)]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    Console(width=120).print(table)


def measure(model: torch.nn.Module) -> tuple[float, int, float]:
    """Seconds of a training step on the CPU, bytes of a checkpoint, seconds to write it."""
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(_CPU_IMAGES, 3, 224, 224), torch.randint(_CLASSES, (_CPU_IMAGES,))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    state = {"optimizer": optimizer.state_dict()}
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        start = time.perf_counter()
        folder = save_checkpoint(
            Path(temporary), epoch=1, image=0, model=model, ema=model, state=state, config="", keep=1
        )
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.rglob("*"))
    return sorted(times)[1], size, seconds


def estimate(gpus: int, rate: float, batch: int, parameters: int, checkpoint: int, disk: float) -> dict[str, str]:
    """The figures of so many GPUs, each of which trains `rate` images a second in batches of `batch`."""
    step = batch / rate
    ring = 2 * (gpus - 1) / gpus * 4 * parameters  # bytes that each sends and receives: float32 gradients
    return {
        "images in an update": f"{gpus * batch:,}",
        "step": f"{step * 1e3:,.0f} ms",
        "epoch": f"{_IMAGES / (gpus * rate) / 60:,.0f} min",
        "gradients, each GPU and direction": f"{ring / 1e9:.2f} GB a step",
        "  bandwidth if spread over the whole step": f"{ring / step / 1e9:.1f} GB/s",
        "  bandwidth if hidden behind the backward pass (2/3)": f"{ring / step / 1e9 * 1.5:.1f} GB/s",
        "images": f"{gpus * rate:,.0f} a second",
        "  read": f"{gpus * rate * _IMAGE_BYTES / 1e9:.2f} GB/s",
        f"checkpoint, one writer at {disk / 1e9:g} GB/s": f"{checkpoint / disk:.1f} s",
        "  share of the time, one every half hour": f"{checkpoint / disk / 1800:.2%}",
        "checkpoint with loop.sharding fsdp, part of each": f"{checkpoint / gpus / 1e6:,.0f} MB",
        "  weights, gradients, moments and average, each GPU": f"{5 * 4 * parameters / gpus / 1e9:.2f} GB",
    }


if __name__ == "__main__":
    main()
