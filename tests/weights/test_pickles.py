"""What people store beside weights is read as nothing; what would run, inflate or is no checkpoint is refused."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import gzip
import io
import os
import pathlib
import pickle
import random
import resource
import subprocess
import tarfile
import types
import uuid
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from convattn.weights.read import CheckpointError, read_state_dict

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


class Mode(enum.Enum):
    FAST = "fast"


@dataclasses.dataclass
class Options:
    lr: float = 0.1
    tags: tuple[str, ...] = ("a",)


class Slots:
    __slots__ = ("lr",)

    def __init__(self):
        self.lr = 0.1


class Node(dict):
    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__["frozen"] = True


Point = collections.namedtuple("Point", "x y")

HARMLESS = {
    "a number of NumPy": np.float64(81.2),
    "other numbers of NumPy": [np.int64(3), np.float32(1), np.bool_(True), np.str_("x")],
    "arrays of NumPy": {"a": np.arange(4), "b": np.ones((2, 2), np.float16), "c": np.array(["x", "yy"])},
    "types of NumPy": [np.dtype("float32"), np.float32, np.dtype([("a", "i4")])],
    "the state of NumPy": [np.random.get_state(), np.random.RandomState(0), np.random.default_rng(0)],
    "paths": argparse.Namespace(
        output=pathlib.Path("x"), root=pathlib.PurePosixPath("x"), other=pathlib.PureWindowsPath("x")
    ),
    "dictionaries": [
        collections.defaultdict(list, {"a": [1]}),
        collections.Counter("aab"),
        collections.OrderedDict(a=1),
    ],
    "a queue": collections.deque([1, 2, 3], maxlen=5),
    "sets": [{1, 2}, frozenset({"a"}), range(3), slice(1, 2), 1j, b"x", bytearray(b"x"), ...],
    "dates": [datetime.datetime(2026, 1, 1), datetime.date(2026, 1, 1), datetime.timedelta(3), datetime.UTC],
    "exact numbers": [decimal.Decimal("0.1"), fractions.Fraction(1, 3), 10**40, uuid.UUID(int=3)],
    "namespaces": [argparse.Namespace(lr=0.1, tags={"a"}), types.SimpleNamespace(a=1)],
    "of torch": [
        torch.Size((1, 2)),
        torch.device("cpu"),
        torch.float16,
        torch.get_rng_state(),
        torch.nn.Parameter(torch.ones(2)),
    ],
    "the state of random": [random.getstate(), random.Random(0)],
    "an enumeration": {"mode": Mode.FAST, Mode.FAST: 1},
    "a class's object": Options(),
    "an object with slots": Slots(),
    "a dictionary of one's own": Node(a=Node(b=1)),
    "a named tuple": Point(1, Point(2, 3)),
    "classes themselves": [Options, torch.nn.Conv2d, torch.optim.AdamW, dict],
    "a module": torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU()),
}


def assert_is_state(state):
    assert state.keys() == STATE.keys()
    assert all(torch.equal(tensor, STATE[key]) for key, tensor in state.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HARMLESS)
def test_plain_data_beside_the_weights_does_no_harm(tmp_path, kind, zipped):
    path = tmp_path / "weights.pth"
    if kind in ("a module", "classes themselves") and not zipped:
        pytest.skip("of the classes of modules the old format stores the source; PyTorch's reader refuses that")
    content = {"extra": HARMLESS[kind], "model": STATE, "again": HARMLESS[kind]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_is_state(read_state_dict(path))


def test_weights_may_stand_in_a_dictionary_of_ones_own(tmp_path):
    path = tmp_path / "weights.pth"
    for wrapped in (Node(model=Node(**STATE)), collections.defaultdict(dict, model=STATE), {"model": Node(**STATE)}):
        torch.save(wrapped, path)
        assert_is_state(read_state_dict(path))


def test_a_whole_model_says_what_to_save(tmp_path):
    for content in (HARMLESS["a module"], {"model": HARMLESS["a module"]}):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=r"model.pth: holds a whole model and not its weights; save those of"):
            read_state_dict(tmp_path / "model.pth")


def runs(function, *arguments):
    class Runs:
        def __reduce__(self):
            return function, arguments

    return Runs()


HARMFUL = {
    "a command": lambda trace: runs(os.system, f"touch {trace}"),
    "a process": lambda trace: runs(subprocess.Popen, ["touch", str(trace)]),
    "code": lambda trace: runs(eval, f"open({str(trace)!r}, 'w')"),
    "a file": lambda trace: runs(open, str(trace), "w"),
    "a folder": lambda trace: runs(os.makedirs, str(trace)),
    "a function of another package": lambda trace: runs(np.savetxt, str(trace), np.ones(1)),
    "a method": lambda trace: runs(pathlib.Path.touch, trace),
    "torch's own": lambda trace: runs(torch.save, 1, str(trace)),
    "a function of ours": lambda trace: runs(save_something, str(trace)),
}


def save_something(path):
    pathlib.Path(path).write_text("ran")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HARMFUL)
def test_what_would_run_is_refused_by_name_and_does_not_run(tmp_path, kind, zipped):
    path, trace = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"model": STATE, "extra": HARMFUL[kind](trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"weights.pth: refused, because it asks to load \S+, which could"
    ) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_a_class_that_is_called_is_not_called(tmp_path):
    trace = tmp_path / "ran"

    class Touches:
        def __init__(self, path):
            pathlib.Path(path).write_text("ran")

        def __setstate__(self, state):
            pathlib.Path(trace).write_text("ran")

    Touches.__qualname__ = Touches.__name__ = "Touches"
    globals()["Touches"] = Touches
    try:
        torch.save({"model": STATE, "extra": runs(Touches, str(tmp_path / "other"))}, tmp_path / "weights.pth")
        assert_is_state(read_state_dict(tmp_path / "weights.pth"))
    finally:
        del globals()["Touches"]
    assert not trace.exists() and not (tmp_path / "other").exists()


# Other files under the name of a checkpoint


def in_a_zip(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def in_a_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


OTHERS = {
    "a pointer of git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "pointer of git-lfs",
    ),
    "a page": (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    "packed": (gzip.compress(b"x" * 100), "compressed by gzip"),
    "a tar": (in_a_tar(), "a tar archive"),
    "an empty pickle": (in_a_zip(**{"data.pkl": b"", "version": "3\n"}), "damaged"),
    "a call with wrong arguments": (
        in_a_zip(**{"data.pkl": b"\x80\x02cargparse\nNamespace\n(K\x01tR.", "version": "3"}),
        "holds",
    ),
    "no unicode": (in_a_zip(**{"data.pkl": b"\x80\x02X\xff\xff\xff\xffa.", "version": "3"}), "damaged"),
    "a memo that is not there": (in_a_zip(**{"data.pkl": b"\x80\x02h\x07.", "version": "3"}), "damaged"),
    "an empty stack": (in_a_zip(**{"data.pkl": b"\x80\x02R.", "version": "3"}), "damaged"),
    "a zip of something else": (in_a_zip(**{"readme.txt": b"hello"}), "damaged"),
    "a newer pickle": (pickle.dumps({"a": 1}, protocol=5), "damaged"),
    "text": (b"404: Not Found\n", "damaged"),
    "zeros": (bytes(1000), "damaged"),
    "a header beyond the file": ((10**9).to_bytes(8, "little") + b"{}", "damaged"),
    "no header": (b"\x08" + bytes(7) + b"{notjson" + bytes(100), "damaged"),
    "tensors beyond the file": (
        b"\x43" + bytes(7) + b'{"a":{"dtype":"F32","shape":[999999999],"data_offsets":[0,3999]}}  ' + bytes(8),
        "damaged",
    ),
    "an unknown type": (
        b"\x38" + bytes(7) + b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}  ' + bytes(9),
        "damaged",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_named_in_one_line(tmp_path, kind, suffix):
    content, message = OTHERS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message if suffix == ".pth" else "damaged|holds") as error:
        read_state_dict(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_the_content_tells_the_kind_and_not_the_suffix(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "weights.pth")
    torch.save(STATE, tmp_path / "weights.bin")
    os.rename(tmp_path / "weights.bin", tmp_path / "other.ckpt")
    for name in ("weights.pth", "other.ckpt"):
        assert_is_state(read_state_dict(tmp_path / name))


def test_a_folder_a_pipe_and_a_name_that_is_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for name, message in [
        ("", "it is a folder"),
        ("pipe.pth", "no ordinary one"),
        ("gone.pth", "no such file"),
        ("x\0.pth", "no"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(tmp_path / name)


# More than the file holds


@pytest.fixture
def little_memory():
    """At most 2 GiB more than there is now: what unpacks to more fails for another reason than it should."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2 * 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def repacked(path, change, compression=zipfile.ZIP_STORED):
    """The archive at `path` with its entries changed by name."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
    path.write_bytes(buffer.getvalue())


def test_a_file_that_unpacks_to_far_more_is_refused(tmp_path, little_memory):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2**20)}, path)
    repacked(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(
        CheckpointError, match=r"weights.pth: refused, because its [\d,]+ bytes unpack to 4,19\d,\d\d\d"
    ):
        read_state_dict(path)
    torch.save({"a": torch.rand(2**10)}, path)  # someone packed it again, no more
    repacked(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert read_state_dict(path)["a"].shape == (2**10,)


def test_a_number_shown_as_many_is_refused(tmp_path, little_memory):
    path = tmp_path / "weights.pth"
    for zipped in (True, False):
        torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"bytes claim to be 4,000,000,000,000 bytes of weights"):
            read_state_dict(path)
    torch.save({"a": torch.zeros(1).expand(10, 10)}, path)
    assert read_state_dict(path)["a"].shape == (10, 10)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_of_more_than_its_bytes_is_damaged(tmp_path, zipped, little_memory):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(0x77)}, path, _use_new_zipfile_serialization=zipped)
    lie = b"J\xff\xff\xff\x7f"  # 2 ** 31 - 1, for the numbers of elements in storage and tensor
    if zipped:
        repacked(path, lambda name, content: content.replace(b"K\x77", lie) if name.endswith("pkl") else content)
    else:
        path.write_bytes(path.read_bytes().replace(b"K\x77", lie))
    with pytest.raises(CheckpointError, match=r"weights.pth: (damaged|refused)") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_thousands_of_classes_are_refused(tmp_path):
    names = b"".join(b"ca.b\nC%d\n0" % number for number in range(5000))
    (tmp_path / "weights.pth").write_bytes(in_a_zip(**{"data.pkl": b"\x80\x02" + names + b"}.", "version": "3"}))
    with pytest.raises(CheckpointError, match=r"refused, because it names 5000 classes beside the weights"):
        read_state_dict(tmp_path / "weights.pth")
