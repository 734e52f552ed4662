"""`convattn explain`."""

import json

import pytest
from PIL import Image

import convattn
from convattn.cli.main import main
from convattn.model_files import save_model
from html_page import Page
from tiny_exports import SIZE, tiny_net
from tiny_runs import write_pictures
from toys import build_toy


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=1, val=1) / "val"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, network in (("a", "smt_nano"), ("b", "smt_nano"), ("gated", "resnet18_das")):
        toy = build_toy(network, num_classes=2)
        toy.pretrained_cfg = {**toy.pretrained_cfg, "input_size": (3, 64, 64), "label_names": ("cat", "dog")}
        save_model(toy, folder / f"{name}.safetensors")
    return folder


def run(capsys, *words):
    status = main(["explain", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_page_of_two_models(models, pictures, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = (models / "a.safetensors", pictures, "--compare", models / "b.safetensors", "--layer", "8,stages.3")
    status, out, err = run(capsys, *words, "--method", "grad-cam,relative_receptive_field", "--output", page)
    assert (status, err) == (0, "")
    assert out.endswith(f"{page}\n")
    assert "mean over heads" in out
    shown = Page(page.read_text())
    assert "What a, b looks at" in "".join(shown.text)
    assert len(shown.all("img")) == 2 * 2 * 3 + 1
    alternatives = [image["alt"] for image in shown.all("img")]
    assert sum(alt.startswith("Grad-CAM: b, stages.2: ") for alt in alternatives) == 2


def test_the_budget_is_kept_and_said(models, pictures, tmp_path, capsys):
    words = (models / "a.safetensors", pictures, "--size", "32", "--images", "1", "--output", tmp_path / "drawn")
    status, out, _ = run(capsys, *words, "--method", "effective_receptive_field,fourier_spectrum", "--json")
    assert status == 0
    field, spectrum = json.loads(out)["sections"]
    assert field["title"] == "Effective receptive field, 1 image at 32 x 32, below the recipe's 1024"
    assert spectrum["about"].endswith("On 1 image at 32 x 32.")
    files = sorted(file.name for file in (tmp_path / "drawn").iterdir())
    assert files == [
        "effective_receptive_field-1-1.png",
        "explanation.json",
        "fourier_spectrum-1-1.png",
        "fourier_spectrum-2-1.png",
        *(f"fourier_spectrum-3-{level}.jpg" for level in range(1, 5)),
    ]
    assert json.loads((tmp_path / "drawn" / "explanation.json").read_text()) == [field, spectrum]


def test_all_methods_of_each_model(models, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convattn.report.explaining.heats._STEPS", 2)
    words = (models / "a.safetensors", pictures / "dark", "--compare", models / "gated.safetensors", "--size", "32")
    status, out, err = run(capsys, *words, "--method", "all", "--output", tmp_path / "page.html", "--json")
    assert status == 0
    assert err == (
        "feature_map_variance is left out: layer 'layer4.0' gives a map of one position, which has no variance; "
        "give larger images\n"
    )
    found = json.loads(out)
    assert found["models"] == ["a", "gated"]
    assert [section["method"] for section in found["sections"]] == [
        "grad_cam",
        "integrated_gradients",
        "occlusion",
        "effective_receptive_field",
        "relative_receptive_field",
        "fourier_spectrum",
        "modulation_maps",
        "gate_maps",
    ]


def test_scores_by_masks(models, pictures, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    mask = Image.new("L", (16, 16))
    mask.paste(1, (4, 4, 12, 12))
    mask.save(tmp_path / "masks" / "000.png")
    words = (models / "a.safetensors", pictures, "--method", "sfd_score", "--masks", tmp_path / "masks")
    status, out, _ = run(capsys, *words, "--target", "dog", "--output", tmp_path / "page.html")
    assert status == 0
    assert "mean of 2" in out
    assert "0.331" in out  # the object's share of the middle
    assert "(10^g - 1) / 9" in out


def test_named_models_with_random_weights(pictures, tmp_path, capsys):
    words = ("smt_nano", pictures / "dark", "--size", "32", "--random-weights", "--output", tmp_path / "page.html")
    assert run(capsys, *words)[0] == 0
    assert "What smt_nano looks at, random weights" in (tmp_path / "page.html").read_text()


def test_an_image_that_cannot_be_read_is_left_out(models, pictures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"")
    words = (models / "a.safetensors", tmp_path / "broken.png", pictures / "dark", "--output", tmp_path / "page.html")
    status, _, err = run(capsys, *words)
    assert (status, err) == (1, f"{tmp_path / 'broken.png'}: the file is empty\n")
    assert len(Page((tmp_path / "page.html").read_text()).all("img")) == 2
    status, _, err = run(capsys, models / "a.safetensors", tmp_path / "broken.png", "--output", tmp_path / "page.html")
    assert status == 1
    assert err.endswith("convattn explain: no image could be read\n")


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [
        (2, [], "no image given; write convattn explain MODEL IMAGE..."),
        (2, ["P", "--method", "grad_kam"], "--method 'grad_kam' is unknown; nearest: grad_cam"),
        (2, ["P", "--method", ","], "--method ',' names nothing; give one or more, with commas between them"),
        (2, ["P", "--method", "sfd_score"], "sfd_score needs --masks, a folder of masks or COCO's annotations"),
        (2, ["P", "--masks", "gone"], "--masks gone: no such file or folder"),
        (2, ["P", "--images", "0"], "--images 0 must be 1 or more"),
        (2, ["P", "--salient", "2"], "--salient 2.0 must be above 0 and at most 1"),
        (2, ["P", "--output", "page.pdf"], "--output page.pdf is neither a page (.html) nor a folder"),
        (1, ["gone.png"], "gone.png: no such file or folder"),
        (1, ["P", "--layer", "stages.9"], "the model has no layer 'stages.9'; nearest: stages"),
        (1, ["P", "--layer", "32"], "the model has no level of stride 32, it has 2, 4, 8, 16; nearest: 16"),
        (1, ["P", "--target", "cow"], "a has no class 'cow'; give a name or a number, 0 to 1; "),
        (
            1,
            ["P", "--method", "gate_maps"],
            "gate_maps looks into DeformableGate, and SMT has none; it has the tensors for grad_cam",
        ),
        (
            1,
            ["P", "--method", "fourier_spectrum", "--size", "32x64"],
            "and a spectrum needs a square one; give images of 32",
        ),
    ],
)
def test_wrong_words_are_refused_in_one_line(models, pictures, tmp_path, monkeypatch, capsys, status, words, message):
    monkeypatch.chdir(tmp_path)
    given = [str(pictures / "dark") if word == "P" else word for word in words]
    found, _, err = run(capsys, models / "a.safetensors", *given)
    assert found == status
    (line,) = err.splitlines()
    assert message in line
    assert not (tmp_path / "explained.html").exists()


def test_exported_files_are_refused(pictures, tmp_path, capsys):
    convattn.export(tiny_net(), tmp_path / "toy.pt2", input_size=SIZE)
    status, _, err = run(capsys, tmp_path / "toy.pt2", pictures / "dark", "--output", tmp_path / "page.html")
    assert status == 2
    assert "toy.pt2: an exported file has no inner tensors and no gradients; give the model itself" in err
