"""The machine that a benchmark runs on: what it is called, and how many of its threads are used."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch

__all__ = ["check_threads", "describe_machine", "processor_name", "pytorch_threads"]


def describe_machine(device: str = "cpu") -> dict[str, str]:
    """Versions, threads, processor, and the GPU if that is what is used."""
    found = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "Python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "CPU": f"{processor_name()} ({os.cpu_count()} cores)",
    }
    return found | ({"GPU": torch.cuda.get_device_name()} if device == "cuda" else {})


def processor_name() -> str:
    """The name that people know it by; Python only knows the architecture on Linux."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def check_threads(number: int | None) -> None:
    """Raise ValueError for more threads than the machine has cores: they would wait for one another."""
    cores = os.cpu_count() or 1
    if number is not None and not 1 <= number <= cores:
        raise ValueError(f"threads {number} must be 1 to {cores}, the number of cores of this machine")


@contextmanager
def pytorch_threads(number: int | None) -> Iterator[None]:
    """PyTorch with so many threads inside the block; as many as before by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
