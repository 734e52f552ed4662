"""Checkpoints: which are kept, and which are passed over."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch

import convattn
from convattn.training.checkpoint import checkpoint_folders, read_checkpoint, save_checkpoint
from convattn.training.sharded import check_shards, load_shards, save_shards, shard
from convattn.weights.read import CheckpointError
from forked_runs import meeting_point, ranks
from tiny_runs import newest_checkpoint


@pytest.fixture(scope="module")
def model():
    return convattn.create_model("smt_nano", num_classes=3, dims=(4, 8, 8, 8), depths=(1, 1, 1, 1))


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def save(tmp_path, model):
    def at(epoch, image=0, *, keep=9, ema=None, trusted=None):
        state = {"at": (epoch, image)}
        return save_checkpoint(
            tmp_path,
            epoch=epoch,
            image=image,
            model=model,
            ema=ema,
            state=state,
            config="{}",
            keep=keep,
            trusted=trusted,
        )

    return at


def kept(run):
    """(epoch, image) of the checkpoints of a run, newest first."""
    return [tuple(int(word) for word in folder.name.rstrip("+").split("_")[1::2]) for folder in checkpoint_folders(run)]


def seal(checkpoint):
    """Digests of the files as they are now."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "sha256.json"]
    digests = {str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (checkpoint / "sha256.json").write_text(json.dumps(digests))


def cut(name):
    def damage(checkpoint):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[: len(content) // 2])

    return damage


def sealed(damage):
    """The same damage, done before the digests were taken."""

    def both(checkpoint):
        damage(checkpoint)
        seal(checkpoint)

    return both


def put(name, content):
    return lambda checkpoint: (checkpoint / name).write_bytes(content)


def hide(name):
    return lambda checkpoint: (checkpoint / name).unlink()


def put_pipe(checkpoint):
    (checkpoint / "sha256.json").unlink()
    os.mkfifo(checkpoint / "sha256.json")


def link_to_device(checkpoint):
    (checkpoint / "state.pt").unlink()
    (checkpoint / "state.pt").symlink_to("/dev/zero")


DAMAGE = {
    "cut": cut("state.pt"),
    "gone": hide("model.safetensors"),
    "no digests": hide("sha256.json"),
    "empty digests": put("sha256.json", b"{}"),
    "digests of another kind": put("sha256.json", b"[1, 2]"),
    "digests nested": put("sha256.json", b"[" * 99_999),
    "digests of elsewhere": put("sha256.json", json.dumps({"../../../../dev/zero": "0"}).encode()),
    "weights do not open": sealed(cut("model.safetensors")),
    "average does not open": sealed(cut("ema.safetensors")),
    "state does not open": sealed(cut("state.pt")),
    "state is rubbish": sealed(put("state.pt", bytes(range(256)) * 9)),
    "state is code": sealed(put("state.pt", pickle.dumps(os.system))),
    "a device": link_to_device,
    "a pipe": put_pipe,
    "nothing in it": lambda checkpoint: [path.unlink() for path in checkpoint.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_passed_over_and_goes_with_the_next_save(tmp_path, model, save, damage):
    good = save(1, ema=model)
    bad = save(2, ema=model)
    DAMAGE[damage](bad)
    with pytest.raises(CheckpointError) as problem:
        read_checkpoint(bad)
    assert str(problem.value).startswith(f"{bad}: damaged")
    assert "\n" not in str(problem.value)
    assert read_checkpoint(good).folder == good
    written = save(1, 8, keep=2, ema=model)
    assert kept(tmp_path) == [(1, 8), (1, 0)]
    assert newest_checkpoint(tmp_path).folder == written


@pytest.mark.parametrize(
    ("damaged", "at", "keep", "left"),
    [
        ([], (5, 0), 2, [(5, 0), (4, 0)]),
        ([4], (3, 8), 1, [(3, 8)]),
        ([4], (3, 8), 2, [(3, 8), (3, 0)]),
        ([3, 4], (2, 8), 2, [(2, 8), (2, 0)]),
        ([4], (5, 0), 2, [(5, 0), (3, 0)]),  # the run went past it
        ([2, 3, 4], (1, 8), 3, [(1, 8), (1, 0)]),
        ([3], (5, 0), 3, [(5, 0), (4, 0), (2, 0)]),  # one in the middle does not count
        ([], (3, 8), 1, [(4, 0), (3, 8)]),  # a newer whole one is nobody's to delete
        ([4], (4, 0), 2, [(4, 0), (3, 0)]),  # in the place of the damaged one
        ([], (4, 0), 2, [(4, 0), (4, 0)]),  # the same place again: the old one is there until the new one is
    ],
)
def test_a_save_never_deletes_whole_checkpoints_for_damaged_ones(tmp_path, save, damaged, at, keep, left):
    for epoch in (1, 2, 3, 4):
        folder = save(epoch)
        if epoch in damaged:
            cut("model.safetensors")(folder)
    written = save(*at, keep=keep)
    assert kept(tmp_path) == left
    assert written.exists()
    assert newest_checkpoint(tmp_path).state["at"] == left[0]


@pytest.mark.parametrize("places", [[(99_999, 0), (100_000, 0)], [(0, 999_999_999), (0, 1_000_000_000), (1, 0)]])
def test_numbers_that_outgrow_their_places_are_still_the_newer(tmp_path, save, places):
    for place in places:
        save(*place, keep=2)
    assert kept(tmp_path) == places[:-3:-1]
    assert newest_checkpoint(tmp_path).state["at"] == places[-1]


def test_a_trusted_checkpoint_is_not_read_again(tmp_path, save, monkeypatch):
    old = [save(epoch) for epoch in (1, 2)]
    monkeypatch.setattr("convattn.training.checkpoint._read", lambda folder: pytest.fail(f"read {folder}"))
    save(3, keep=3, trusted=set(old))
    assert kept(tmp_path) == [(3, 0), (2, 0), (1, 0)]


def test_what_was_read_and_found_whole_is_trusted_from_then_on(save):
    old, trusted = save(1), set()
    save(2, trusted=trusted)
    assert trusted == {old}


def test_what_a_person_has_put_beside_them_stays(tmp_path, save):
    old, away = save(1), tmp_path / "away"
    for name in ("epoch_00001_image_000000000.bak", "epoch_00001_best"):
        shutil.copytree(old, old.with_name(name))
    old.rename(away)
    old.symlink_to(away)
    (tmp_path / "checkpoints" / "epoch_00000_image_000000000").touch()  # a file
    save(2, keep=1)
    left = ["epoch_00001_best", "epoch_00001_image_000000000.bak", "epoch_00002_image_000000000"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == left
    assert (away / "state.pt").exists()
    assert kept(tmp_path) == [(2, 0)]


def test_one_that_cannot_be_removed_stops_no_run(tmp_path, save, monkeypatch):
    old = save(1)

    def refuse(folder, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.warns(UserWarning, match=rf"^{old}: an old checkpoint that cannot be removed \(Permission denied\)"):
        written = save(2, keep=1)
    assert checkpoint_folders(tmp_path) == [written, old]


FAILURES = [
    OSError(5, "Input/output error"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", FAILURES, ids=["disk", "memory", "memory of PyTorch"])
def test_a_disk_or_memory_that_does_not_answer_deletes_nothing(tmp_path, save, monkeypatch, error):
    save(1), save(2)

    def fail(folder):
        raise error

    monkeypatch.setattr("convattn.training.checkpoint._read", fail)
    save(1, 8, keep=2)
    assert kept(tmp_path) == [(2, 0), (1, 8), (1, 0)]


@pytest.fixture(scope="module")
def sharded(model, tmp_path_factory):
    """A sharded model with its optimiser, in a group of one process; and its shards."""
    store = meeting_point()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ranks(1, store.port)[0].items():
            patch.setenv(name, value)
        torch.distributed.init_process_group("gloo")
        spread = convattn.create_model("smt_nano", num_classes=3, dims=(4, 8, 8, 8), depths=(1, 1, 1, 1))
        shard(spread, torch.device("cpu"))
        optimizer = torch.optim.SGD(spread.parameters(), momentum=0.9)
        folder = tmp_path_factory.mktemp("sharded") / "shards"
        save_shards(folder, spread, None, optimizer)
        yield folder, spread, optimizer
        torch.distributed.destroy_process_group()


class RunsCode:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_the_index_of_shards_runs_no_code(sharded, tmp_path):
    folder, spread, optimizer = sharded
    load_shards(folder, spread, None, optimizer)
    copy = shutil.copytree(folder, tmp_path / "shards")
    (copy / ".metadata").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    with pytest.raises(pickle.UnpicklingError, match=r"\.metadata asks to load posix\.mkdir, which could run code"):
        check_shards(copy)
    with pytest.raises(ValueError, match=r"shards could not be read: .*\.metadata asks to load posix\.mkdir"):
        load_shards(copy, spread, None, optimizer)
    assert not (tmp_path / "ran").exists()


def test_a_value_among_the_shards_runs_no_code(sharded, tmp_path, monkeypatch):
    _, spread, optimizer = sharded
    copy = tmp_path / "shards"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", _saving_code_for_numbers(torch.save, tmp_path / "ran"))
        save_shards(copy, spread, None, optimizer)
    with pytest.raises(ValueError, match=r"optimizer\.\S+ is no plain value and could run code"):
        load_shards(copy, spread, None, optimizer)
    assert not (tmp_path / "ran").exists()


def _saving_code_for_numbers(save, mark):
    def saving(value, *args, **keywords):
        return save(value if isinstance(value, torch.Tensor) else RunsCode(mark), *args, **keywords)

    return saving


@pytest.mark.parametrize(
    "damage", [cut(".metadata"), cut("__0_0.distcp"), hide("__0_0.distcp"), put(".metadata", b"7")]
)
def test_shards_that_are_not_whole_are_found_before_they_are_loaded(sharded, tmp_path, damage):
    copy = shutil.copytree(sharded[0], tmp_path / "shards")
    check_shards(copy)
    damage(copy)
    with pytest.raises((ValueError, OSError, EOFError, pickle.UnpicklingError)):
        check_shards(copy)
