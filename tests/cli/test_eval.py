import json
import shutil

import pytest
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

from convattn.backbones.registry import create_model
from convattn.classification.evaluate import wilson_interval
from convattn.cli.main import main
from convattn.model_files import load_model, save_model
from convattn.training.loop import train
from tiny_exports import write_sealed
from tiny_runs import TINY_OPTIONS, tiny_config, write_pictures


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
    shown = capsys.readouterr().out
    assert shown.startswith("input        16 x 16, crop ratio 1, bicubic\n")
    assert "top-1        100.00 %  (95 % interval 67.56 to 100.00)\n" in shown
    assert "published    none: these are not the authors' weights\n" in shown
    assert "precision    fp32\n" in shown


def test_eval_names_what_it_leaves_out_up_to_a_limit(run, tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures", val=1)
    for index in range(100):
        (pictures / "val" / "bright" / f"{index + 1:03d}.png").hardlink_to(pictures / "val" / "bright" / "000.png")
    broken = pictures / "val" / "dark" / "000.png"
    broken.write_bytes(b"")
    assert main(["eval", str(run), "--data", str(pictures), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"left out: {broken}: the file is empty",
        "class 'dark' counts for nothing: none of its images can be read",
    ]
    assert json.loads(captured.out)["unreadable"] == [str(broken)]
    (pictures / "val" / "dark" / "001.png").write_bytes(b"")
    assert main(["eval", str(run), "--data", str(pictures)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"convattn eval: 2 of 103 images of {pictures} cannot be read, more than 1%; repair or remove"
    )


def test_eval_of_a_run_takes_the_data_it_was_trained_on(run, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 8


def test_eval_shows_what_each_class_is_taken_for_the_worst_first(run, tmp_path, capsys):
    val = write_pictures(tmp_path) / "val"
    (val / "dark" / "000.png").rename(val / "bright" / "night.png")
    assert main(["eval", str(run), "--data", str(tmp_path), "--per-class"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["bright", "5", "80.00 %", "dark (1)"],
        ["dark", "3", "100.00 %", "-"],
    ]
    assert main(["eval", str(run), "--data", str(tmp_path), "--per-class", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == [
        {"class": "bright", "name": "bright", "images": 5, "top1": 80.0, "confused_with": "dark", "confused": 1},
        {"class": "dark", "name": "dark", "images": 3, "top1": 100.0, "confused_with": None, "confused": 0},
    ]


def test_eval_in_bf16_rounds_what_the_model_computes(run, capsys):
    losses = {}
    for precision in ("fp32", "bf16"):
        assert main(["eval", str(run), "--precision", precision, "--device", "cpu", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["precision"] == precision
        losses[precision] = found["loss"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_eval_takes_the_labels_of_a_flat_folder_from_a_file(run, pictures, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("bright", "dark"):
        shutil.copy(pictures / "val" / name / "001.png", flat / f"{name}.png")
    (tmp_path / "labels.txt").write_text("bright.png bright\ndark.png bright\n")
    assert main(["eval", str(run), "--data", str(flat), "--labels", str(tmp_path / "labels.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == 50.0


SYNSETS = ImageNetInfo("imagenet-1k").label_names()


class ColourReader(nn.Module):
    """Tells 1,000 classes by red and green, 32 shades of each; stands in for a model with the authors' weights."""

    num_classes = 1000

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = dict(
            input_size=(3, 8, 8), crop_pct=1.0, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
        )

    def forward(self, x):
        red, green, _ = (x.mean(dim=(2, 3)) * 255 / 8).round().long().unbind(1)
        return 10 * nn.functional.one_hot((32 * red + green).clamp(0, 999), 1000).float()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """One image of each of ImageNet's classes, in two layouts; a few are grey, CMYK or no JPEG inside."""
    folder = tmp_path_factory.mktemp("imagenet")
    (folder / "flat").mkdir()
    for label, synset in enumerate(SYNSETS):
        red, green = label // 32 * 8, label % 32 * 8
        image = Image.new("RGB", (12, 9), (red, green, 0))
        if label == 66:
            image = Image.new("L", (12, 9), red)
        elif label == 100:
            image = Image.new("CMYK", (12, 9), (255 - red, 255 - green, 255, 0))
        path = folder / "val" / synset / f"ILSVRC2012_val_{label + 1:08d}.JPEG"
        path.parent.mkdir(parents=True)
        image.save(path, format="PNG" if label == 200 else "JPEG", quality=95)
        shutil.copy(path, folder / "flat" / f"{synset}_photograph.JPEG")
    return folder


@pytest.fixture
def colour_reader(monkeypatch):
    monkeypatch.setattr("convattn.cli.eval.open_model", lambda name: ColourReader())


@pytest.mark.parametrize("layout", ["flat", "val", ""])
def test_one_photograph_of_each_class_goes_through_beside_the_published_figure(
    photographs, colour_reader, capsys, layout
):
    assert main(["eval", "smt_tiny", "--data", str(photographs / layout), "--batch-size", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["top1"], found["top5"]) == (1000, 100.0, 100.0)
    assert found["published"] == {"top1": 82.2, "top5": 96.0, "source": "README of github.com/AFeng-x/SMT"}
    assert found["real"] is None


def test_what_was_published_is_shown_with_its_source(photographs, colour_reader, capsys):
    assert main(["eval", "smt_tiny", "--data", str(photographs), "--batch-size", "100"]) == 0
    shown = capsys.readouterr().out
    assert "top-1        100.00 %  (95 % interval 99.62 to 100.00)  published: 82.20 %\n" in shown
    assert "published    on ImageNet-1k's 50,000 validation images: README of github.com/AFeng-x/SMT\n" in shown


@pytest.mark.parametrize(
    ("model", "classes", "reason"),
    [
        ("smt_tiny", 5, "the data has 5 of the 1,000 classes that the authors evaluate on"),
        ("smt_large.in22k", 1000, "the authors state no accuracy of in22k"),
        ("timm:resnet50", 1000, "these are not the authors' weights"),
    ],
)
def test_where_no_published_figure_is_over_the_same_it_says_so(
    photographs, colour_reader, tmp_path, capsys, model, classes, reason
):
    for synset in SYNSETS[:classes]:
        (tmp_path / synset).symlink_to(photographs / "val" / synset)
    assert main(["eval", model, "--data", str(tmp_path), "--batch-size", "100"]) == 0
    shown = capsys.readouterr().out
    assert f"published    none: {reason}\n" in shown
    assert "published:" not in shown


def test_real_labels_count_beside_the_others(photographs, colour_reader, tmp_path, capsys):
    content = [[label % 1000] for label in range(50_000)]
    content[2] = []  # left out
    content[4] = [7, 8]  # neither is what the model says
    content[5] = [8, 5]
    (tmp_path / "real.json").write_text(json.dumps(content))
    words = ["eval", "smt_tiny", "--data", str(photographs), "--real-labels", str(tmp_path / "real.json")]
    assert main([*words, "--json"]) == 0
    real = json.loads(capsys.readouterr().out)["real"]
    assert (real["images"], real["top1"]) == (999, pytest.approx(100 * 998 / 999))
    assert real["top1_interval"] == pytest.approx(wilson_interval(real["top1"], 999))
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "ReaL top-1    99.90 %  (95 % interval" in shown
    assert "images       1,000, 999 with ReaL labels\n" in shown


def test_real_labels_that_do_not_fit_the_files_are_refused(photographs, colour_reader, capsys):
    assert main(["eval", "smt_tiny", "--data", str(photographs / "flat"), "--real-labels", "timm"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "n01440764_photograph.JPEG: ReaL labels go by the names of ImageNet's validation images" in line


def test_real_labels_are_for_imagenets_classes(run, capsys):
    assert main(["eval", str(run), "--real-labels", "timm"]) == 1
    assert "--real-labels are for a model of ImageNet's 1,000 classes" in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run's model as a file for ONNX Runtime, for one image at a time."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("exported")
    return write_sealed(folder, "onnx", "none", batch=1, model=load_model(run), size=(3, 16, 16))


def test_an_exported_file_is_evaluated_like_the_run_it_is_of(run, exported, pictures, capsys):
    found = []
    for model in (run, exported):
        assert main(["eval", str(model), "--data", str(pictures), "--per-class", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    for key in ("images", "top1", "protocol", "precision", "classes"):
        assert found[1][key] == found[0][key]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-4)


def test_an_exported_file_classifies_like_the_run_it_is_of(run, exported, pictures, capsys):
    results = []
    for model in (run, exported):
        assert main(["predict", str(model), str(pictures / "val" / "dark" / "000.png"), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)[0]["predictions"])
    assert [entry["class"] for entry in results[1]] == ["dark", "bright"]
    for got, want in zip(*results, strict=True):
        assert got == {**want, "probability": pytest.approx(want["probability"], abs=1e-5)}


def test_an_exported_file_has_its_own_precision(exported, pictures, capsys):
    assert main(["eval", str(exported), "--data", str(pictures), "--precision", "bf16"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("which is in fp32; export the model in bf16")


def test_a_pyramid_is_no_classifier(tmp_path, capsys):
    pyramid = create_model("smt_nano", features_only=True, out_indices=(0, 1), **TINY_OPTIONS).eval()
    path = write_sealed(tmp_path, "torch_export", "none", model=pyramid, size=(3, 16, 16))
    for command, *rest in (["predict", "a.png"], ["eval", "--data", "digits"]):
        assert main([command, str(path), *rest]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(".pt2: outputs no classes; take a model with a head")


@pytest.mark.parametrize(
    ("status", "args", "message"),
    [
        (1, ["predict", "gone.safetensors", "a.png"], "gone.safetensors: no such file"),
        (1, ["predict", "gone.onnx", "a.png"], "gone.onnx: no such file"),
        (2, ["predict", "{run}"], "no image given; write convattn predict MODEL IMAGE..."),
        (2, ["predict", "{run}", "a.png", "--top", "0"], "convattn predict: --top 0 must be 1 or more"),
        (1, ["eval", "{run}", "--data", "nowhere"], "nowhere: no such folder"),
        (2, ["eval", "{run}", "--data", "digits", "--batch-size", "0"], "--batch-size 0 must be 1 or more"),
        (
            1,
            ["eval", "{run}", "--output", "/dev/null/a.html"],
            "/dev/null could not be written: ",
        ),
        (2, ["eval", "{run}", "--workers", "-1"], "--workers -1 must be 0 or more"),
        (2, ["eval", "smt_tiny"], "--data is missing, and smt_tiny is no run folder that would name its own"),
    ],
)
def test_bad_requests_are_refused_in_one_line(run, capsys, status, args, message):
    assert main([word.format(run=run) for word in args]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
