"""What earlier versions wrote still opens: a run folder of before the task had a part of its own in the configuration.

`golden/run_folder_format_1.tar.xz` was written on 2026-11-27 by the code of that day: a run of two epochs that was
stopped in the middle of the second, and the log and the last model of the same run left alone.
"""

import json
import shutil
import tarfile
from dataclasses import asdict

import pytest
import torch

import convattn
from convattn import model_files, saved
from convattn.cli.main import main
from convattn.model_files import load_model, read_metadata
from convattn.training.output import stored_config
from golden_file import FOLDER
from tiny_runs import figures, write_pictures


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with `stopped`, `whole` and the `pictures` that they are trained on."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FOLDER / "run_folder_format_1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    write_pictures(folder / "pictures", train=6, val=2)
    return folder


def test_the_earlier_name_of_model_files_is_importable():
    assert {name: getattr(saved, name) for name in saved.__all__} == {n: getattr(model_files, n) for n in saved.__all__}
    assert {"load_model", "save_model"} <= {*saved.__all__}


def test_fields_of_an_old_configuration_are_found_where_they_are_now(old):
    config = stored_config(old / "stopped")
    assert (config.task.kind, config.task.mixup, config.task.cutmix) == ("classification", 0.5, 1.0)
    assert (config.task.label_smoothing, config.task.crop_ratio) == (0.1, 1.0)
    assert config.task.augmentation.crop_area == (0.08, 1.0)
    assert (config.data.image_size, config.loop.ema_decay, config.optimizer.clip_grad) == (16, 0.9, 1.0)
    stored = json.loads((old / "stopped" / "config.json").read_text())
    assert asdict(config.task.distillation) == stored["distillation"]


def test_an_old_run_is_opened_shown_and_evaluated(old, capsys):
    best = old / "stopped" / "best.safetensors"
    for model in (convattn.open_model(old / "stopped"), load_model(best)):
        assert model.pretrained_cfg["label_names"] == ("bright", "dark")
        assert model.pretrained_cfg["input_size"] == (3, 16, 16)
    (epoch,) = figures(old / "stopped")
    assert read_metadata(best)["metrics"]["top1"] == epoch["top1"] == 75.0
    assert main(["runs", str(old), "--json"]) == 0
    captured = capsys.readouterr()
    rows = {row["run"]: row for row in json.loads(captured.out)["runs"]}
    assert (rows["stopped"]["epochs"], rows["stopped"]["best_top1"], rows["stopped"]["best_epoch"]) == (1, 75.0, 1)
    assert main(["eval", str(old / "stopped"), "--data", str(old / "pictures"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == 75.0
    assert found["loss"] == pytest.approx(epoch["val_loss"], rel=1e-4)


def test_an_old_run_resumes_and_ends_with_the_figures_of_the_one_left_alone(old, tmp_path, capsys):
    """Bit for bit on the kind of machine that wrote it; elsewhere as close as its arithmetic is."""
    folder = shutil.copytree(old / "stopped", tmp_path / "stopped")
    assert main(["train", "--resume", str(folder), "--data", str(old / "pictures")]) == 0
    assert "it must be the same images in another place" in capsys.readouterr().err
    ended, left_alone = figures(folder), figures(old / "whole")
    weights = [load_model(at / "last.safetensors").state_dict() for at in (folder, old / "whole")]
    made_by = json.loads((old / "whole" / "made_by.json").read_text())
    here = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    exact = made_by == here
    assert [entry.keys() for entry in ended] == [entry.keys() for entry in left_alone]
    assert [entry["step"] for entry in ended] == [3, 6]
    for one, other in zip(ended, left_alone, strict=True):
        assert one == (other if exact else pytest.approx(other, rel=1e-3))
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=0 if exact else 1e-2, atol=0 if exact else 1e-3)
