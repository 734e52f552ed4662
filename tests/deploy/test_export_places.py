"""An exported file takes its place whole, or leaves what was there; a place that cannot be written is told."""

import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

import convattn
from convattn.deploy.runtimes import torch_export
from tiny_exports import names, tiny


def with_companion(monkeypatch, *, as_folder: bool):
    """Let a `.pt2` file be written in two files, or as a folder; and leave another one there when it is opened."""
    honest = SimpleNamespace(**vars(torch_export))

    def inner(path):
        return path / "model.pt2" if as_folder else path

    def write(model, request, path):
        if as_folder:
            path.mkdir()
        honest.write(model, request, inner(path))
        (path / "weights.bin" if as_folder else path.with_suffix(".bin")).write_bytes(b"weights")

    def open_file(path):
        path.with_suffix(".cache").write_bytes(b"compiled")
        return honest.open_file(inner(path))

    monkeypatch.setattr(torch_export, "write", write)
    monkeypatch.setattr(torch_export, "open_file", open_file)
    if as_folder:
        monkeypatch.setattr("convattn.deploy.load._format", lambda path: "torch_export")
        for name in ("operators", "read_metadata", "digest"):
            monkeypatch.setattr(torch_export, name, lambda path, name=name: getattr(honest, name)(inner(path)))
        monkeypatch.setattr(torch_export, "write_metadata", lambda path, text: honest.write_metadata(inner(path), text))


def test_a_format_may_write_two_files(tmp_path, monkeypatch):
    with_companion(monkeypatch, as_folder=False)
    (tmp_path / "m.bin").write_bytes(b"older")
    report = convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16))
    assert report.files == ("m.bin", "m.pt2")
    assert report.file_mib == ((tmp_path / "m.pt2").stat().st_size + len(b"weights")) / 2**20
    assert (tmp_path / "m.bin").read_bytes() == b"weights"
    assert names(tmp_path) == ["m.bin", "m.pt2"]  # what opening left behind is gone


def test_a_folder_in_the_place_of_a_second_file_stays(tmp_path, monkeypatch):
    with_companion(monkeypatch, as_folder=False)
    (tmp_path / "m.bin").mkdir()
    (tmp_path / "m.bin" / "photo").write_bytes(b"dear")
    with pytest.raises(OSError, match=r"m\.bin is a folder"):
        convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16))
    assert names(tmp_path) == ["m.bin"]
    assert (tmp_path / "m.bin" / "photo").read_bytes() == b"dear"


def test_a_format_may_be_a_folder_which_takes_the_place_of_an_older_one(tmp_path, monkeypatch):
    with_companion(monkeypatch, as_folder=True)
    first = convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16))
    (tmp_path / "m.pt2" / "old").write_bytes(b"")
    second = convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16))
    assert first.checksum != second.checksum
    assert names(tmp_path) == ["m.pt2"]
    assert names(tmp_path / "m.pt2") == ["model.pt2", "weights.bin"]


@pytest.mark.parametrize("as_folder", [False, True])
def test_if_the_files_cannot_be_moved_in_the_older_ones_are_there_again(tmp_path, monkeypatch, as_folder):
    with_companion(monkeypatch, as_folder=as_folder)
    convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    honest = os.replace

    def replace(source, target):
        if Path(target).name == "m.pt2" and Path(source).parent.name.endswith(".writing"):
            raise OSError(28, "No space left on device")
        honest(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="could not be written: No space left on device"):
        convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def open_file(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_export, "open_file", open_file)
    with pytest.raises(KeyboardInterrupt):
        convattn.export(tiny(), tmp_path / "a" / "b" / "m.pt2", input_size=(16, 16))
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path):
    steps = []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"could not be written: .*file is no folder"):
        convattn.export(tiny(), tmp_path / "file" / "m.pt2", input_size=(16, 16), on_step=steps.append)
    with pytest.raises(OSError, match=r"could not be written: No such file or directory: '/proc/nothing/m\.pt2'"):
        convattn.export(tiny(), "/proc/nothing/m.pt2", input_size=(16, 16), on_step=steps.append)
    assert steps == []


def test_a_disk_without_room_is_told_before_any_work(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="could not be written: it takes about 0 MiB and 0 are free"):
        convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16), on_step=steps.append)
    assert steps == []
    assert names(tmp_path) == []


@contextmanager
def limited_file_size(bytes: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("name", "package"), [("m.onnx", "onnxscript"), ("m.pt2", "torch"), ("m.xml", "openvino")])
def test_a_disk_that_fills_up_is_told_in_one_line(tmp_path, name, package):
    pytest.importorskip(package, reason="needs the extra deploy")
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 256, 3)).eval()
    with limited_file_size(50_000), pytest.raises(OSError, match=f"could not be written: .*{name}"):
        convattn.export(model, tmp_path / name, input_size=(16, 16), dynamic="none")
    assert names(tmp_path) == []
