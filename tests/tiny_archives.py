"""Small archives and folders: pictures in tar files, in WebDataset shards, under any names."""

import io
import json
import tarfile
from pathlib import Path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"x", **fields) -> None:
    """One member; `fields` are those of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """An archive of these names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            add(archive, name, content)
    return path


def write_files(folder: Path, *names: str, content: bytes = b"x", **texts: str) -> Path:
    """Files of these names in a folder; `texts` are lists and label files, `train_csv="…"` that of `train.csv`."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name, text in texts.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(text)
    return folder


def files_in(folder: Path) -> list[tuple[str, bytes]]:
    """The pictures below a folder."""
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


def pack_splits(pictures: Path, target: Path, prefix: str = "") -> Path:
    """`target/train.tar` and `target/val.tar` of a folder of pictures; members in an order of their own."""
    for split in ("train", "val"):
        members = [(prefix + name, content) for name, content in reversed(files_in(pictures / split))]
        write_tar(target / f"{split}.tar", members)
    return target


def write_shards(folder: Path, samples: list[tuple[str, bytes, object]], shards: int = 2, suffix: str = "cls") -> Path:
    """WebDataset shards `0000.tar` and on: samples (key, content, label) in turns, labels in `.cls` or `.json`."""
    for shard in range(shards):
        members = []
        for key, content, label in samples[shard::shards]:
            text = str(label) if suffix == "cls" else json.dumps({"label": label, "caption": "a picture"})
            members += [(f"{key}.png", content), (f"{key}.{suffix}", text.encode())]
        write_tar(folder / f"{shard:04d}.tar", members)
    return folder
