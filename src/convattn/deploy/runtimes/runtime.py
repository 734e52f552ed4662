"""What a file format offers, and what it is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic

__all__ = ["CannotRunHere", "Precision", "Request", "Run", "Runtime", "UnreadableFile", "output_names"]

Precision = Literal["fp32", "bf16", "fp16", "int8"]

Run = Callable[[Tensor], list[Tensor]]  # images (B, C, H, W) float32 -> the model's outputs in order, float32


class CannotRunHere(RuntimeError):
    """A file cannot be run on this machine, or not without something that is missing; says why."""


class UnreadableFile(ValueError):
    """An exported file is missing, damaged, or of another kind than it seems; names it."""


def output_names(outputs: Tensor | Sequence[Any]) -> list[str]:
    """What the outputs of a model are called: its only tensor `output`, a sequence of levels `level_0`, `level_1`, …"""
    return ["output"] if isinstance(outputs, Tensor) else [f"level_{index}" for index in range(len(outputs))]


@dataclass(frozen=True)
class Request:
    """How a model is to be written."""

    images: Tensor  # (B, C, H, W) float32: what the model is traced on; a file with nothing free takes this B only
    dynamic: Dynamic = "none"
    precision: Precision = "fp32"
    calibration: Sequence[Tensor] = ()  # int8 only: preprocessed images (1, C, H, W) like those to come


class Runtime(Protocol):
    """One file format: a module with these names. Its own library is imported in its functions only."""

    SUFFIX: str  # with the dot
    PRECISIONS: tuple[Precision, ...]  # what it can be written in
    DYNAMIC: tuple[Dynamic, ...]  # what it can leave free

    def form(self, model: nn.Module) -> nn.Module:
        """What `write` makes of an inference form before it is traced: same outputs, other operations."""

    def write(self, model: nn.Module, request: Request, path: Path) -> None:
        """Write `model`, an inference form in float32 on the CPU, to `path`; other files may stand beside it.

        Raises MissingExtra if the library is not installed.
        """

    def open_file(self, path: Path) -> Run:
        """The file as a function; raises CannotRunHere where that cannot be."""

    def operators(self, path: Path) -> dict[str, int]:
        """The operators in the file and how often each occurs."""

    def write_metadata(self, path: Path, text: str) -> None:
        """Put `text` into the file, in the place of what was there."""

    def read_metadata(self, path: Path) -> str | None:
        """What `write_metadata` has put there; None if there is nothing."""

    def digest(self, path: Path) -> str:
        """SHA-256, in hexadecimal, of everything that decides the numbers; the metadata are left out."""
