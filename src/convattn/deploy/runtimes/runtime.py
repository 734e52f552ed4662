"""What a file format offers, and what it is asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic

__all__ = [
    "CannotRunHere",
    "OpenedFile",
    "Precision",
    "Request",
    "Runtime",
    "UnreadableFile",
    "as_list",
    "is_pyramid",
    "names_of_outputs",
    "output_names",
]

Precision = Literal["fp32", "bf16", "fp16", "int8"]

OpenedFile = Callable[[Tensor], list[Tensor]]  # images (B, C, H, W) float32 -> the model's outputs in order, float32


class CannotRunHere(RuntimeError):
    """A file cannot be run on this machine, or not without something that is missing; says why."""


class UnreadableFile(ValueError):
    """An exported file is missing, damaged, or of another kind than it seems; names it."""


def is_pyramid(model: nn.Module) -> bool:
    """Whether `model` gives levels, as a `features_only` model does; a network with a head has a plain list of them."""
    return callable(getattr(getattr(model, "feature_info", None), "channels", None))


def as_list(outputs: Any) -> list[Tensor]:
    """What a model gives, a tensor or several in a list, a tuple or a dict, as a list.

    Raises:
        TypeError: if it is anything else.
    """
    several = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    listed = [several] if isinstance(several, Tensor) else list(several) if isinstance(several, list | tuple) else []
    if not listed or not all(isinstance(output, Tensor) for output in listed):
        raise TypeError(f"the model gives {type(outputs).__name__}; what can be exported gives a tensor or several")
    return listed


def output_names(outputs: Any, of_several: str = "output") -> tuple[str, ...]:
    """What the outputs of a model are called: by their keys, its only tensor `output`, others `output_0`, `output_1`, …

    Raises:
        ValueError: for a key that no file can have.
    """
    if isinstance(outputs, Mapping):
        wrong = next((key for key in outputs if not isinstance(key, str) or key in ("", "images")), None)
        if wrong is not None:
            raise ValueError(f"an output of the model is called {wrong!r}; a file takes texts other than 'images'")
        return tuple(outputs)
    if isinstance(outputs, Tensor):
        return ("output",)
    return tuple(f"{of_several}_{index}" for index in range(len(outputs)))


def names_of_outputs(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """`output_names` of what `model` makes of `images`; the levels of a pyramid are `level_0`, `level_1`, …"""
    with torch.inference_mode():
        return output_names(model(images), "level" if is_pyramid(model) else "output")


@dataclass(frozen=True)
class Request:
    """How a model is to be written."""

    images: Tensor  # (B, C, H, W) float32: what the model is traced on; a file with nothing free takes this B only
    dynamic: Dynamic = "none"
    precision: Precision = "fp32"
    calibration: Sequence[Tensor] = ()  # int8 only: preprocessed images (1, C, H, W) like those to come
    in_float32: Sequence[str] = ()  # int8 only: dotted names of modules that stay in float32
    quantised: Sequence[Any] | None = (
        None  # int8 only: `QuantisedLayer` rows, where it is known already what each costs
    )


class Runtime(Protocol):
    """One file format: a module with these names, and so without `__all__`; its library is imported in functions only.

    A module may also have OPSET, a number that the reports show, and `quantisation_report(path)`, the layers of an int8
    file as `QuantisedLayer`.
    """

    SUFFIX: str  # with the dot
    LIBRARIES: tuple[str, ...]  # packages beside torch that write and run it
    PRECISIONS: tuple[Precision, ...]  # what it can be written in
    DYNAMIC: tuple[Dynamic, ...]  # what it can leave free

    def form(self, model: nn.Module) -> nn.Module:
        """What `write` makes of an inference form before it is traced: same outputs, other operations."""

    def write(self, model: nn.Module, request: Request, path: Path) -> None:
        """Write `model`, an inference form in float32 on the CPU, to `path`; other files may stand beside it.

        Raises MissingExtra if the library is not installed.
        """

    def open_file(self, path: Path) -> OpenedFile:
        """The file as a function; raises CannotRunHere where that cannot be."""

    def operators(self, path: Path) -> dict[str, int]:
        """The operators in the file and how often each occurs."""

    def write_metadata(self, path: Path, text: str) -> None:
        """Put `text` into the file, in the place of what was there."""

    def read_metadata(self, path: Path) -> str | None:
        """What `write_metadata` has put there; None if there is nothing."""

    def digest(self, path: Path) -> str:
        """SHA-256, in hexadecimal, of everything that decides the numbers; the metadata are left out."""
