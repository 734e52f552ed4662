"""Reading a checkpoint: what is taken, what is refused, and that nothing in it runs."""

import argparse
import collections
import os
import pickle

import pytest
import safetensors.torch
import torch
from official_files import save_with_yacs_node

from convattn.weights.read import CheckpointError, read_state_dict

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


def assert_is_state(state):
    assert state.keys() == STATE.keys()
    assert all(torch.equal(tensor, STATE[key]) for key, tensor in state.items())


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "state_dict_ema", "model_state_dict", "module"])
def test_takes_off_the_wrapper(tmp_path, wrapper):
    path = tmp_path / "weights.pth"
    torch.save(STATE if wrapper is None else {wrapper: STATE, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    assert_is_state(read_state_dict(path))


def test_reads_a_file_with_a_yacs_node_and_a_namespace(tmp_path):
    path = tmp_path / "weights.pth"
    extra = {
        "args": argparse.Namespace(lr=0.1, tags={"a"}),
        "max_accuracy": 82.2,
        "epoch": 299,
        "scaler": {"scale": 2.0},
    }
    save_with_yacs_node({"model": collections.OrderedDict(STATE), **extra}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # else this test would show nothing
    assert_is_state(read_state_dict(path))


def test_reads_the_old_format_of_torch(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False)
    assert_is_state(read_state_dict(path))


def test_reads_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(STATE, path)
    assert_is_state(read_state_dict(path))


class RunsCode:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, zipped):
    path, trace = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"model": STATE, "extra": RunsCode(f"touch {trace}")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"weights.pth: refused, because it asks to load (posix|os).system"
    ) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_a_bare_pickle_that_would_run_code_is_refused(tmp_path):
    path, trace = tmp_path / "weights.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps(RunsCode(f"touch {trace}"), protocol=2))
    with pytest.raises(CheckpointError) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_damaged_files_are_told_apart_in_one_line(tmp_path):
    good = tmp_path / "good.pth"
    torch.save({"model": STATE}, good)
    old = tmp_path / "good_old.pth"
    torch.save({"model": STATE}, old, _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(STATE, tmp_path / "good.safetensors")
    files = {
        "cut.pth": good.read_bytes()[: good.stat().st_size // 2],
        "cut_old.pth": old.read_bytes()[: old.stat().st_size - 40],
        "cut.safetensors": (tmp_path / "good.safetensors").read_bytes()[:-5],
        "text.pth": b"404: Not Found\n",
        "text.safetensors": b"<html>not weights</html>",
        "empty.pth": b"",
        "empty.safetensors": b"",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            read_state_dict(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ") and "\n" not in message, message
        assert ("the file is empty" in message) == name.startswith("empty"), message
        assert any(word in message for word in ("empty", "damaged", "not a PyTorch checkpoint")), message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, not a dictionary of weights"),
        ({}, "holds no weights"),
        ({"epoch": 3, "lr": 0.1}, "entry 'epoch' is not a tensor; no dictionary in it holds weights"),
        (torch.ones(3), "holds Tensor, not a dictionary of weights"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content, message):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)


def test_a_name_that_no_disk_takes_is_told_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.pth: (could not be read \(File name too long\)|no such file)$"):
        read_state_dict(tmp_path / f"{'a' * 300}.pth")


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            read_state_dict(path)
