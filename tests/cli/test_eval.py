import json

import pytest

from convattn.cli.main import main
from convattn.saved import save_model
from convattn.training.loop import train
from tiny_runs import tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    return train(tiny_config(pictures, tmp_path_factory.mktemp("runs") / "run", schedule=dict(epochs=3)))


def test_eval_gives_accuracy_with_its_interval(run, pictures, capsys):
    assert main(["eval", str(run), "--data", str(pictures), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["top1"], found["top2"], found["unreadable"]) == (8, 100.0, 100.0, [])
    assert found["top1_interval"] == pytest.approx([67.56, 100.0], abs=0.01)
    assert main(["eval", str(run), "--data", str(pictures / "val"), "--batch-size", "3"]) == 0
    assert "top-1   100.00 %  (95 % interval 67.56 to 100.00)" in capsys.readouterr().out


def test_eval_of_a_run_takes_the_data_it_was_trained_on(run, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 8


def test_eval_leaves_out_what_it_cannot_read_and_names_it(run, tmp_path, capsys):
    pictures = write_pictures(tmp_path)
    (pictures / "val" / "dark" / "001.png").write_bytes(b"")
    assert main(["eval", str(run), "--data", str(pictures), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 7
    assert captured.err.strip().endswith("dark/001.png: the file is empty")


def test_eval_refuses_data_of_other_classes(run, tmp_path, capsys):
    pictures = write_pictures(tmp_path)
    (pictures / "val" / "dark").rename(pictures / "val" / "night")
    assert main(["eval", str(run), "--data", str(pictures)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "class 'night' of the data is unknown to the model, which knows bright, dark" in line


def test_predict_names_the_classes(run, pictures, capsys):
    images = [str(pictures / "val" / name / "000.png") for name in ("bright", "dark")]
    assert main(["predict", str(run), *images, "--top", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in results] == images
    assert [entry["predictions"][0]["class"] for entry in results] == ["bright", "dark"]
    assert all(0.5 < entry["predictions"][0]["probability"] <= 1 for entry in results)


def test_predict_names_a_broken_image_and_goes_on(run, pictures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"")
    good = str(pictures / "val" / "dark" / "000.png")
    assert main(["predict", str(run), str(tmp_path / "broken.png"), good]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"{tmp_path / 'broken.png'}: the file is empty\n"
    assert captured.out.startswith(f"{good}: dark ")


def test_predict_knows_the_names_of_imagenet(pictures, tmp_path, capsys):
    import convattn

    save_model(convattn.create_model("timm:test_byobnet"), tmp_path / "m.safetensors")
    image = str(pictures / "val" / "dark" / "000.png")
    assert main(["predict", str(tmp_path / "m.safetensors"), image, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert len(result["predictions"]) == 5
    assert not any(entry["class"].isdigit() for entry in result["predictions"])


@pytest.mark.parametrize(
    ("status", "args", "message"),
    [
        (1, ["predict", "gone.safetensors", "a.png"], "gone.safetensors: no such file"),
        (2, ["predict", "{run}"], "no image given; write convattn predict MODEL IMAGE..."),
        (2, ["predict", "{run}", "a.png", "--top", "0"], "--top 0 must be 1 or more"),
        (1, ["eval", "{run}", "--data", "nowhere"], "nowhere: no such folder"),
        (2, ["eval", "{run}", "--data", "digits", "--batch-size", "0"], "--batch-size 0 must be 1 or more"),
        (2, ["eval", "{run}", "--workers", "-1"], "--workers -1 must be 0 or more"),
        (2, ["eval", "smt_tiny"], "--data is missing, and smt_tiny is no run folder that would name its own"),
    ],
)
def test_bad_requests_are_refused_in_one_line(run, capsys, status, args, message):
    assert main([word.format(run=run) for word in args]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
