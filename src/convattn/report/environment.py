"""On what a report was made: versions, machine, threads."""

import importlib.metadata
import platform
from pathlib import Path

__all__ = ["describe_environment"]

_PACKAGES = ("convattn", "torch", "torchvision", "timm", "captum", "onnxruntime")


def describe_environment() -> tuple[tuple[str, str], ...]:
    """(what, value) rows: Python, the packages that are installed, processor, GPU if there is one, threads, system."""
    import torch  # whoever compares runs or looks through data needs none

    rows = [("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not needed for what was done
    rows.append(("Processor", _processor()))
    if torch.cuda.is_available():
        rows.append(("GPU", torch.cuda.get_device_name()))
    rows += [("Threads", str(torch.get_num_threads())), ("System", f"{platform.system()} {platform.machine()}")]
    return tuple(rows)


def _processor() -> str:
    """The name that people know it by; Python only knows the architecture on Linux."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
