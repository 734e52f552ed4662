"""What is mutated, by kind: sound files, how one is made wrong, the public function that reads it, and its errors."""

import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import convattn
from convattn.data.dataset import DataError
from convattn.data.files import PlainFiles
from convattn.data.flat import open_by_label_file
from convattn.data.images import FORMATS as IMAGE_FORMATS
from convattn.data.images import ImageError, read_image
from convattn.data.lists import open_list
from convattn.data.sources import open_unlabelled
from convattn.deploy.formats import formats
from convattn.deploy.runtimes.runtime import CannotRunHere, UnreadableFile
from convattn.model_files import load_model, save_model
from convattn.report.run import RunError, write_run_report
from convattn.training.checkpoint import read_checkpoint, save_checkpoint
from convattn.training.config import ConfigError
from convattn.training.journal import LogError, read_log
from convattn.training.output import stored_config
from convattn.weights.read import CheckpointError, read_state_dict
from mutations import mutated, mutated_json
from run_folders import write_run
from tiny_archives import write_shards, write_tar
from tiny_exports import write, write_sealed
from tiny_runs import TINY_OPTIONS

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    make: Callable[[Path], object]  # writes sound files into a folder
    read: Callable[[Path], object]  # the reader of one
    errors: tuple[type[Exception], ...]  # its own
    write: Callable[[random.Random, Path, Path], Path] = lambda rng, samples, folder: _one_file(rng, samples, folder)
    package: str = "torch"  # without which there is nothing to read

    @property
    def is_missing(self) -> bool:
        return find_spec(self.package) is None


def _one_file(rng: random.Random, samples: Path, folder: Path) -> Path:
    """One of the samples, mutated, under a name of its own."""
    files = sorted(samples.iterdir())
    chosen = rng.choice(files)
    path = folder / f"input{chosen.suffix}"
    path.write_bytes(mutated(chosen.read_bytes(), [file.read_bytes() for file in files], rng))
    return path


# Images


def _make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in IMAGE_FORMATS:
        try:
            colour.save(
                folder / f"rgb.{format.lower()}", format, **({"exif": exif} if format in ("JPEG", "PNG") else {})
            )
        except (KeyError, OSError):  # a Pillow without it
            continue
    frames = [colour, colour.rotate(90)]
    frames[0].save(folder / "frames.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "frames.webp", save_all=True, append_images=frames[1:])
    colour.save(folder / "progressive.jpg", progressive=True)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.quantize(16).save(folder / "palette.png", transparency=0)
    Image.fromarray(rng.integers(0, 65536, (24, 20), dtype=np.uint16)).save(folder / "deep.png")
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        colour.save(folder / f"{compression}.tif", compression=compression)
    Image.fromarray(rng.random((24, 20), dtype=np.float32)).save(folder / "float.tif")


def _see(path: Path) -> None:
    model = nn.Identity()
    model.pretrained_cfg = {"input_size": (3, 32, 32)}  # type: ignore[assignment]
    convattn.transforms_for(model)(read_image(path))


# Checkpoints


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "stem.weight": torch.randn(4, 3, 3, 3),
        "norm.num_batches_tracked": torch.tensor(3),
        "head": torch.randn(2).half(),
    }


def _make_pickles(folder: Path) -> None:
    content = {"model": _weights(), "epoch": 3, "args": {"lr": 0.1, "names": ["a", "b"]}}
    torch.save(content, folder / "zip.pth")
    torch.save(_weights(), folder / "bare.pth")
    torch.save(content, folder / "old.pth", _use_new_zipfile_serialization=False)


def _make_safetensors(folder: Path) -> None:
    safetensors.torch.save_file(_weights(), folder / "weights.safetensors")
    safetensors.torch.save_file(_weights(), folder / "described.safetensors", {"format": "pt"})


def _with_other_header(rng: random.Random, samples: Path, folder: Path) -> Path:
    """Half of them whole files, and half with another header of the right length, in which one may lie more subtly."""
    if rng.random() < 0.5:
        return _one_file(rng, samples, folder)
    content = rng.choice(sorted(samples.iterdir())).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = mutated_json(content[8:end], rng)
    (folder / "input.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    return folder / "input.safetensors"


def _make_models(folder: Path) -> None:
    for name, options in (("smt_nano", TINY_OPTIONS), ("cotnet_nano", {})):
        model = convattn.create_model(name, num_classes=2, **options)
        model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["cat", "dog"]}
        save_model(convattn.attach(model, "se") if name == "smt_nano" else model, folder / f"{name}.safetensors")


def _with_other_description(rng: random.Random, samples: Path, folder: Path) -> Path:
    if rng.random() < 0.2:
        return _with_other_header(rng, samples, folder)
    content = rng.choice(sorted(samples.iterdir())).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    text = header["__metadata__"]["convattn"].encode()
    text = mutated_json(text, rng) if rng.random() < 0.8 else mutated(text, [text], rng)
    header["__metadata__"]["convattn"] = text.decode(errors="replace")
    encoded = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode(errors="replace")
    (folder / "input.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[end:])
    return folder / "input.safetensors"


# Run folders


def _make_run(folder: Path) -> None:
    run = write_run(folder / "input", [50.0, 60.0, 55.0])
    (run / "unreadable.txt").write_text("a.png: the file is empty\n")
    (run / "skipped.jsonl").write_text(
        json.dumps({"step": 3, "reason": "loss is nan", "ranks": [0], "paths": ["a.png"]}) + "\n"
    )


def _with_another_file(rng: random.Random, samples: Path, folder: Path) -> Path:
    """A run folder of which one file is mutated, as bytes or as JSON."""
    path = folder / "input"
    shutil.copytree(samples / "input", path)
    chosen = rng.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    content = chosen.read_bytes()
    if chosen.suffix == ".json" and rng.random() < 0.7:
        chosen.write_bytes(mutated_json(content, rng))
    elif chosen.suffix == ".jsonl" and rng.random() < 0.7:
        lines = content.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at] = mutated_json(lines[at], rng) + b"\n"
        chosen.write_bytes(b"".join(lines))
    else:
        chosen.write_bytes(mutated(content, [content], rng))
    return path


def _read_run(path: Path) -> None:
    """All that is read of one, each by its own reader and with its own errors."""
    problem: Exception | None = None
    for read, errors in ((read_log, LogError), (stored_config, ConfigError), (write_run_report, RunError)):
        try:
            read(path)
        except errors as error:
            if str(path) not in str(error) or len(str(error).splitlines()) != 1:
                raise ValueError(f"{read.__name__}: {error}") from error
            problem = error
    if problem is not None:
        raise problem


def _make_checkpoint(folder: Path) -> None:
    state = {"counters": {"epoch": 1, "best": None}, "images": 10, "optimizer": {"state": {0: torch.zeros(3)}}}
    model = convattn.create_model("smt_nano", num_classes=2, **TINY_OPTIONS)
    written = save_checkpoint(
        folder / "run", epoch=1, image=0, model=model, ema=model, state=state, config="{}", keep=1
    )
    written.rename(folder / "input")


def _with_digests_that_fit(rng: random.Random, samples: Path, folder: Path) -> Path:
    """Half of the mutated files are as their digests say: only reading them shows that they are wrong."""
    path = _with_another_file(rng, samples, folder)
    if rng.random() < 0.5:
        names = [
            file.relative_to(path).as_posix()
            for file in path.rglob("*")
            if file.is_file() and file.name != "sha256.json"
        ]
        digests = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
        (path / "sha256.json").write_text(json.dumps(digests))
    return path


# Lists and archives


def _make_lists(folder: Path) -> None:
    (folder / "names.csv").write_text("path,label\na/0.jpg,cat\nb/1.jpg,dog\n'c, d'/2.jpg,cat\n")
    (folder / "numbers.csv").write_text('path,label,class\n"a,b.jpg",0,cat\nb.jpg,1,"big dog"\n')
    (folder / "tabs.tsv").write_text("label\tpath\ncat\ta.jpg\ndog\tb.jpg\n", "utf-8")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return
    table = pyarrow.table({"path": ["a.jpg", "b.jpg"], "label": ["cat", "dog"]})
    parquet.write_table(table, folder / "names.parquet")
    parquet.write_table(pyarrow.table({"path": ["a.jpg"], "label": [0], "class": ["cat"]}), folder / "numbers.parquet")


_LABELLED = ["a.jpg", "b.jpg", "c.jpg"]


def _make_label_files(folder: Path) -> None:
    (folder / "lines.txt").write_text("cat\ndog\ncat\n")
    (folder / "pairs.txt").write_text("a.jpg 0\nb.jpg 1\nc.jpg 0\n")
    (folder / "kaggle.csv").write_text(
        "ImageId,PredictionString\na,n01440764 1 2 3 4\nb,n01440764 1 2\nc,n02119789 1\n"
    )


def _make_archives(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    write_tar(
        folder / "classes.tar", [("a/0.png", buffer.getvalue()), ("b/" + "long" * 40 + ".png", buffer.getvalue())]
    )
    write_shards(folder, [("0", buffer.getvalue(), 0), ("1", buffer.getvalue(), 1)], shards=1)
    write_shards(folder / "json", [("0", buffer.getvalue(), "a"), ("1", buffer.getvalue(), "b")], 1, "json")
    (folder / "json" / "0000.tar").rename(folder / "0001.tar")
    (folder / "json").rmdir()


def _read_archive(path: Path) -> None:
    """An index is right or refused; an image in it is read or set aside by name."""
    images = open_unlabelled(path)
    for index in range(min(len(images), 10)):
        try:
            images.read(index)
        except ImageError as error:
            if path.name not in str(error):
                raise ValueError(f"no name: {error}") from error


# Exported files


def _make_exported(format: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_sealed(folder, format)
        write(folder, format, batch=1)

    return make


def _with_other_files_beside(format: str) -> Callable[[random.Random, Path, Path], Path]:
    """Of a file in two parts either is mutated; or the description is another, of which the checksum may fit."""

    def write(rng: random.Random, samples: Path, folder: Path) -> Path:
        runtime = formats()[format]
        chosen = rng.choice(sorted(samples.glob(f"*{runtime.SUFFIX}")))
        path = folder / chosen.name
        for file in samples.glob(f"{chosen.stem}.*"):
            shutil.copy(file, folder)
        text = runtime.read_metadata(path)
        if text is not None and rng.random() < 0.5:
            text = mutated_json(text.encode(), rng).decode(errors="replace")
            try:
                described = json.loads(text)
            except (ValueError, RecursionError):
                described = None
            if isinstance(described, dict) and rng.random() < 0.7:  # as an earlier version, or a forger, writes it
                described.pop("own_checksum", None)
                text = json.dumps(described | {"checksum": runtime.digest(path)})
            runtime.write_metadata(path, text)
            return path
        file = rng.choice(sorted(folder.iterdir()))
        file.write_bytes(mutated(file.read_bytes(), [other.read_bytes() for other in sorted(samples.iterdir())], rng))
        return path

    return write


def _open_exported(path: Path) -> None:
    model = convattn.load_exported(path)
    if model.metadata is not None:
        model.pretrained_cfg, model.task_kind, model.feature_info  # noqa: B018


def _exported(format: str, package: str = "torch") -> Kind:
    errors = (UnreadableFile, CannotRunHere)
    return Kind(_make_exported(format), _open_exported, errors, _with_other_files_beside(format), package)


KINDS: dict[str, Kind] = {
    "images": Kind(_make_images, _see, (ImageError,)),
    "pickled checkpoints": Kind(_make_pickles, read_state_dict, (CheckpointError,)),
    "safetensors": Kind(_make_safetensors, read_state_dict, (CheckpointError,), _with_other_header),
    "model files": Kind(_make_models, load_model, (CheckpointError,), _with_other_description),
    "run folders": Kind(_make_run, _read_run, (LogError, ConfigError, RunError), _with_another_file),
    "run checkpoints": Kind(_make_checkpoint, read_checkpoint, (CheckpointError,), _with_digests_that_fit),
    "lists": Kind(_make_lists, open_list, (DataError,)),
    "label files": Kind(
        _make_label_files,
        lambda path: open_by_label_file(PlainFiles(_LABELLED), _LABELLED, path),
        (DataError,),
    ),
    "archives": Kind(_make_archives, _read_archive, (DataError,)),
    "onnx": _exported("onnx", "onnxruntime"),
    "openvino": _exported("openvino", "openvino"),
    "torch_export": _exported("torch_export"),
}
