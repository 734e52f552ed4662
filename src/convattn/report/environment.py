"""On what a report was made: versions, machine, threads."""

import importlib.metadata
import platform

__all__ = ["describe_environment"]

_PACKAGES = ("convattn", "torch", "torchvision", "timm", "captum", "onnxruntime")


def describe_environment() -> tuple[tuple[str, str], ...]:
    """(what, value) rows: Python, the packages that are installed, processor, GPU if there is one, threads, system."""
    import torch  # whoever compares runs or looks through data needs none

    from convattn.bench.machine import processor_name

    rows = [("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not needed for what was done
    rows.append(("Processor", processor_name()))
    if torch.cuda.is_available():
        rows.append(("GPU", torch.cuda.get_device_name()))
    rows += [("Threads", str(torch.get_num_threads())), ("System", f"{platform.system()} {platform.machine()}")]
    return tuple(rows)
