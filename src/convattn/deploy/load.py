"""An exported file as a model: one call, whatever runtime runs it."""

from pathlib import Path
from typing import Any, NoReturn

import torch
from timm.models import FeatureInfo
from torch import Tensor, nn

from convattn.deploy.formats import formats
from convattn.deploy.metadata import Metadata, NoMetadata, read
from convattn.deploy.runtimes import pt2_archive
from convattn.deploy.runtimes.runtime import OpenedFile, UnreadableFile
from convattn.shown import shown

__all__ = ["ExportedModel", "describe_exported", "exported_suffixes", "load_exported"]


def load_exported(path: str | Path) -> "ExportedModel":
    """Open a file written by `export`: ONNX, OpenVINO, an exported program or any other of its formats.

    The format is found from the suffix, that of a `.pt2` file from what is in it. What the file says of itself is
    checked against its contents before it is run. A file of another origin runs too if it takes images and nothing
    else; asked for its preprocessing or its task, it says that it does not know.

    A `.pt2` file can run code of whoever wrote it as it is opened: an exported program brings Python source and may
    bring pickles, an AOTInductor package is machine code, and the checksum is no signature. Open those of people you
    trust; ONNX and OpenVINO files are data.

    Returns:
        A model: images (B, C, H, W) -> what the exported model gave, one tensor, a list or a dict of them, float32.
        `transforms_for` and the commands take it like any other; what its task says of it are attributes.

    Raises:
        UnreadableFile: if the file is missing, of an unknown suffix, damaged, changed since its export, or described in
            a newer layout.
        CannotRunHere: if it is for another machine, or its runtime does not exist here.
        MissingExtra: if its runtime is not installed.
    """
    path = Path(path)
    format, metadata = describe_exported(path)
    return ExportedModel(path, format, formats()[format].open_file(path), metadata)


def describe_exported(path: Path) -> tuple[str, Metadata | None]:
    """The format of an exported file and what it says of itself, None in one of another origin; nothing of it is run.

    Raises:
        UnreadableFile, MissingExtra: as `load_exported`.
    """
    try:
        format = _format(path)
        return format, read(format, path)
    except NoMetadata:
        return format, None
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be read: {error.strerror}") from None


def exported_suffixes() -> tuple[str, ...]:
    """The suffixes of files that `load_exported` opens."""
    return tuple(dict.fromkeys(runtime.SUFFIX for runtime in formats().values()))


class ExportedModel(nn.Module):
    """An exported file as a model: it runs, and has no weights to train, copy or export again.

    A file that takes one batch size only is given its batches: more images in several, fewer with black ones behind.
    Several threads may call it at once. `metadata` is what the file says of itself; None for one of another origin.
    """

    def __init__(self, path: Path, format: str, run: OpenedFile, metadata: Metadata | None):
        super().__init__()
        self.path = path
        self.format = format
        self.metadata = metadata
        self._run = run
        self.eval()

    def forward(self, images: Tensor) -> Tensor | list[Tensor] | dict[str, Tensor]:
        """Images (B, C, H, W) on any device -> what the exported model gave, there; of a tuple a list.

        Raises:
            ValueError: if the file does not take images of this shape, naming those that it takes.
        """
        self._check(images)
        given = images.detach().to("cpu", torch.float32).contiguous()
        batch = None if self.metadata is None else self.metadata.batch
        try:
            with torch.autocast("cpu", enabled=False):  # a file computes in the precision that it was written in
                outputs = self._run(given) if batch is None else _in_batches(self._run, given, batch)
        except Exception as error:  # the runtimes have nothing in common here
            raise ValueError(
                f"{self.path}: does not run on images of shape {tuple(images.shape)} ({' '.join(str(error).split())})"
            ) from error
        outputs = [output.to(images.device) for output in outputs]
        known = self.metadata
        if known is not None and known.returns == "dict":
            return dict(zip(known.outputs, outputs, strict=True))
        is_list = known is not None and known.returns == "list"
        return outputs[0] if len(outputs) == 1 and not is_list else outputs

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The input that the model expects and what its task says of it, in timm's words."""
        known = self._known()
        if known.preprocessing is None:
            raise ValueError(f"{self.path}: the model that was exported did not say how its images are prepared")
        return {
            **known.details,
            "architecture": known.model,
            "input_size": known.input_size,
            **vars(known.preprocessing),
        }

    def __getattr__(self, name: str) -> Any:
        """The details of the task, beside what every module has."""
        known = self.__dict__.get("metadata")
        if known is not None and name in known.details:
            return known.details[name]
        return super().__getattr__(name)

    @property
    def task_kind(self) -> str | None:
        """The kind of its task; None of a network without a head."""
        return self._known().task

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the only images that the file takes; None where they are free."""
        known = self._known()
        return None if known.dynamic == "all" else known.input_size[1:]

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self._known().input_size[0]

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and reduction of each level of a pyramid, as timm's feature models have it."""
        known = self._known()
        levels = [
            dict(num_chs=channels, reduction=reduction, module=name)
            for name, channels, reduction in zip(known.outputs, known.channels, known.reductions, strict=False)
        ]
        return FeatureInfo(levels, tuple(range(len(levels))))

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise ValueError(
            f"{self.path}: an exported file runs only; to fuse, count or export, take the model that it was made from"
        )

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.path}, {self.format}" + (f", {shown(self.metadata.model)}" if self.metadata else "")

    def _known(self) -> Metadata:
        if self.metadata is None:
            raise ValueError(
                f"{self.path}: was not written by convattn, so its preprocessing and its task are unknown; "
                "prepare its input yourself, or export the model with convattn"
            )
        return self.metadata

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4:
            raise ValueError(f"{self.path}: images of shape {tuple(images.shape)} are not (B, C, H, W)")
        if self.metadata is None:
            return
        channels, *size = self.metadata.input_size
        if images.shape[1] != channels:
            raise ValueError(f"{self.path}: takes images of {channels} channels, not {images.shape[1]}")
        given = list(images.shape[2:])
        if self.metadata.dynamic != "all" and given != size:
            raise ValueError(
                f"{self.path}: takes images of {size[0]} x {size[1]}, not {given[0]} x {given[1]}; "
                "resize them, or export with dynamic='all'"
            )


def _in_batches(run: OpenedFile, images: Tensor, batch: int) -> list[Tensor]:
    """The outputs of a file that takes `batch` images, no more and no fewer."""
    count = len(images)
    missing = -count % batch if count else batch  # of no images the shape of the outputs is learnt from black ones
    filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
    parts = [run(part) for part in filled.split(batch)]
    return [torch.cat(outputs)[:count] for outputs in zip(*parts, strict=True)]


def _format(path: Path) -> str:
    if not path.exists():
        raise UnreadableFile(f"{path}: no such file")
    if not path.is_file() and not path.is_dir():  # a pipe or a device would be read without an end
        raise UnreadableFile(f"{path}: is no regular file")
    if path.suffix == pt2_archive.SUFFIX:
        return pt2_archive.contents(path)
    for name, runtime in formats().items():
        if path.suffix == runtime.SUFFIX:
            return name
    raise UnreadableFile(f"{path}: no exported file ends in {path.suffix!r}; known: {', '.join(exported_suffixes())}")
