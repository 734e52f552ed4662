import shutil

import pytest

from convattn.cli.main import main
from convattn.config_errors import ConfigError
from convattn.data.dataset import DataError, DataWarning
from convattn.data.held_out import share_of
from convattn.data.sources import open_training
from convattn.training.loop import train
from tiny_runs import tiny_config, write_pictures


@pytest.fixture
def photos(tmp_path):
    """Class folders without splits: 20 pictures each."""
    write_pictures(tmp_path / "all", train=20)
    return shutil.move(tmp_path / "all" / "train", tmp_path / "photos")


def names(data):
    return {path.rpartition("photos/")[2] for path in data.paths}


def test_so_much_of_each_class_is_held_out_by_the_seed(photos):
    learnt, held = open_training(photos, validation="0.2", seed=3)
    assert len(learnt) + len(held) == 40
    assert [list(held.labels).count(label) for label in (0, 1)] == [4, 4]
    assert not names(learnt) & names(held)
    assert names(open_training(photos, validation=0.2, seed=3)[1]) == names(held)
    assert names(open_training(photos, validation="0.2", seed=4)[1]) != names(held)
    assert learnt.classes == held.classes == ["bright", "dark"]


def test_copies_of_a_picture_go_the_same_way(photos):
    for index in range(1, 10):
        shutil.copy(f"{photos}/dark/000.png", f"{photos}/dark/copy{index}.png")
    shutil.copy(f"{photos}/dark/000.png", f"{photos}/bright/mistaken.png")
    for seed in range(5):
        _, held = open_training(photos, validation=0.3, seed=seed)
        copies = [name for name in names(held) if "copy" in name or name in ("dark/000.png", "bright/mistaken.png")]
        assert len(copies) in (0, 11)


def test_a_class_of_one_picture_is_learnt_and_told(photos):
    (photos / "grey").mkdir()
    shutil.copy(photos / "dark" / "000.png", photos / "grey" / "one.png")
    (photos / "grey" / "one.png").write_bytes((photos / "grey" / "one.png").read_bytes() + b" ")
    with pytest.warns(DataWarning, match="1 classes of one picture are not validated: grey"):
        learnt, held = open_training(photos, validation="0.2")
    assert "grey/one.png" in names(learnt)
    assert 2 not in held.labels


def test_what_is_not_read_or_has_no_effect_is_said(photos, tmp_path):
    data = write_pictures(tmp_path / "data")
    with pytest.warns(DataWarning, match=f"{data}/val: not read; data.validation holds images out of {data}/train"):
        open_training(data, validation="0.2")
    with pytest.raises(DataError, match=r"labels.csv: images that are held out have their labels; leave the label fil"):
        open_training(photos, validation="0.2", validation_labels="labels.csv")


def test_what_cannot_be_cut_is_said(photos, tmp_path):
    with pytest.raises(DataError, match=r"or hold some of the images out: --data.validation 0.2"):
        open_training(photos)
    for share in ("0", "1", "1.5", "-0.1", "nan"):
        with pytest.raises(ConfigError, match=f"data.validation {share}: a share of the images must be above 0"):
            open_training(photos, validation=share)
    assert share_of(None) is share_of("val") is None
    with pytest.raises(DataError, match=r"digits: has validation images of its own"):
        open_training("digits", validation="0.2")


def test_a_run_lists_them_and_is_resumed_and_evaluated_on_them(photos, tmp_path, capsys):
    parts = dict(data=dict(validation="0.2"), schedule=dict(epochs=1, warmup_epochs=0))
    run = train(tiny_config(photos, tmp_path / "run", **parts))
    listed = (run / "validation.txt").read_text().splitlines()
    assert len(listed) == 8
    assert all(name.startswith(("bright/", "dark/")) for name in listed)
    assert main(["eval", str(run)]) == 0
    assert "images       8" in capsys.readouterr().out
    for index in range(1, 11):
        (photos / "dark" / f"new{index}.png").write_bytes((photos / "dark" / "001.png").read_bytes() + b" " * index)
    assert main(["eval", str(run)]) == 1
    assert "the images have changed: " in capsys.readouterr().err
    assert main(["train", "--resume", str(run)]) == 1
    assert "training images, but 32 when the run was stopped" in capsys.readouterr().err


def test_images_that_were_moved_are_still_those(photos, tmp_path):
    run = train(tiny_config(photos, tmp_path / "run", data=dict(validation="0.2"), schedule=dict(epochs=2)))
    shutil.move(photos, tmp_path / "elsewhere")
    assert main(["train", "--resume", str(run), "--data", str(tmp_path / "elsewhere")]) == 0
