"""The sections of the page of explanations, and where objects lie."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import convattn
from convattn.cli.options import explain as words
from convattn.data.dataset import DataError
from convattn.explain.blocks import BLOCKS, GENERAL
from convattn.explain.grad_cam import grad_cam
from convattn.explain.overlay import overlay
from convattn.explain.sfd import sfd_score
from convattn.report.explaining.methods import METHODS
from convattn.report.explaining.page import write_explanation
from convattn.report.explaining.regions import open_regions
from convattn.report.explaining.section import Asked
from convattn.report.explaining.subject import Subject
from html_page import Page
from tiny_detectors import detector
from tiny_segmenters import TINY_OPTIONS
from toys import build_toy


def described(model, **more):
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64), **more}
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(2)]


def subject(pictures, name="smt_nano", label=None, **options):
    return Subject(label or name, described(build_toy(name, **options)), pictures)


def explain(method, subjects, **asked):
    told = []
    section = METHODS[method].explain(subjects, Asked(**asked), told.append)
    assert section.method == method
    assert sum(told) == len(subjects) * len(subjects[0].pictures) * max(1, len(asked.get("layers", [])))
    json.dumps(section.as_json())
    return section


def test_every_method_is_known_everywhere_by_one_name():
    assert [*METHODS] == [*words.METHODS]
    assert {*METHODS} == {*GENERAL, *BLOCKS}
    assert {*METHODS} <= {*convattn.explain.__all__}


def test_layers_and_models_side_by_side(pictures):
    plain, other = subject(pictures), subject(pictures, label="other")
    one = explain("grad_cam", [plain], layers=[8, 16])
    assert [strip.title for strip in one.strips] == ["0.png", "1.png"]
    assert [len(strip.panels) for strip in one.strips] == [3, 3]
    assert [panel.caption.partition(":")[0] for panel in one.strips[0].panels[1:]] == [
        "smt_nano, stages.2",
        "smt_nano, stages.3",
    ]
    for index, strip in enumerate(one.strips):
        heat = grad_cam(plain.model, plain.images[index : index + 1], layer=16)[0]
        assert strip.panels[0].picture == plain.seen(index)
        assert strip.panels[2].picture == overlay(plain.seen(index), heat)
    both = explain("grad_cam", [plain, other], layers=[8, 16])
    assert [strip.title for strip in both.strips] == [
        f"{at}.png, stride {stride}" for at in (0, 1) for stride in (8, 16)
    ]
    assert both.about == "Bright places speak for the class. On 2 images at 64 x 64."


def test_the_class_that_is_explained(pictures):
    names = tuple("abcdefg")
    named = Subject("m", described(build_toy("smt_nano"), label_names=names), pictures)
    with torch.no_grad():
        shares = named.model(named.images).softmax(1)
    said = [strip.panels[1].caption for strip in explain("grad_cam", [named]).strips]
    for index, caption in enumerate(said):
        share, best = shares[index].max(0)
        assert caption.partition(";")[0] == f"m, stages.3: {names[best]} {100 * float(share):.0f} %"
    asked = explain("grad_cam", [named], target="e").strips[0].panels[1].caption
    assert asked.partition(";")[0] == f"m, stages.3: e {100 * float(shares[0, 4]):.0f} %"
    assert named.target("4") == named.target("e") == 4
    with pytest.raises(
        ValueError, match=r"^m has no class 'z'; give a name or a number, 0 to 6; known: a, b, c, d, e, f"
    ):
        named.target("z")
    with pytest.raises(ValueError, match=r"^m has no class '7'"):
        named.target("7")


def test_a_map_without_anything_is_told(pictures, monkeypatch):
    monkeypatch.setattr("convattn.report.explaining.heats.grad_cam", lambda *_, **__: torch.zeros(1, 64, 64))
    (strip, _) = explain("grad_cam", [subject(pictures)]).strips
    assert strip.panels[1].caption.endswith("; nothing here speaks for it: another --layer may")


def test_a_segmenter(pictures):
    model = convattn.create_segmenter("smt_nano", "semantic_fpn", num_classes=3, width=16, **TINY_OPTIONS).eval()
    section = explain("grad_cam", [Subject("s", described(model), pictures)])
    assert section.strips[0].panels[1].caption.startswith("s, backbone.stages.3: class ")


def test_a_detector(pictures):
    model = detector("retinanet").eval()
    model.score_threshold = 0.0
    one = Subject("d", described(model, label_names=("ant", "bee", "cow")), pictures)
    found = model(one.images[:1])[0]
    section = explain("grad_cam", [one], layers=[8], box_xyxy=tuple(found["boxes"][3].tolist()))
    name = ("ant", "bee", "cow")[int(found["labels"][3])]
    caption = f"d, backbone.stages.0: {name} {100 * float(found['scores'][3]):.0f} %"
    assert section.strips[0].panels[1].caption == caption
    other = explain("grad_cam", [one], layers=[8], target="cow").strips[0].panels[1].caption
    assert ": cow " in other


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_signed_maps(pictures, method, monkeypatch):
    monkeypatch.setattr("convattn.report.explaining.heats._STEPS", 2)
    section = explain(method, [subject(pictures)])
    assert [len(strip.panels) for strip in section.strips] == [2, 2]
    assert section.about.endswith("On 2 images at 64 x 64.")


def test_figures_and_their_budget(pictures):
    pictures = pictures[:1]
    subjects = [subject(pictures), subject(pictures, label="other", stacking="half")]
    field = METHODS["effective_receptive_field"].explain(
        [Subject(one.label, one.model, pictures, 32) for one in subjects], Asked(), lambda images: None
    )
    assert field.title == "Effective receptive field, 1 image at 32 x 32, below the recipe's 1024"
    assert [row[0] for row in field.tables[0].rows] == ["smt_nano", "other"]
    relative = explain("relative_receptive_field", subjects, normalise="uniform")
    assert [row[:2] for row in relative.tables[0].rows] == [
        (label, "stages.2.blocks.1.token_mixer") for label in ("smt_nano", "other")
    ]
    spectrum = explain("fourier_spectrum", subjects)
    assert [len(strip.panels) for strip in spectrum.strips] == [1, 1, 4, 4]
    variance = explain("feature_map_variance", subjects)
    assert len(variance.tables[0].rows) == 12


@pytest.mark.parametrize(
    ("method", "name", "panels"),
    [
        ("response_maps", "groupmixformer_nano", [7]),
        ("modulation_maps", "smt_nano", [4, 4]),
        ("contexts", "cotnet_50", [4, 1, 1]),
        ("gate_maps", "resnet18_das", [5, 8]),
    ],
)
def test_inner_maps(pictures, method, name, panels):
    section = explain(method, [subject(pictures[:1], name)])
    assert [len(strip.panels) for strip in section.strips] == panels
    assert "On 1 image at 64 x 64." in section.about


def test_the_position_that_is_asked_for(pictures):
    section = explain("gate_maps", [subject(pictures[:1], "resnet18_das")], position=(63, 8))
    captions = [panel.caption for panel in section.strips[1].panels if "read for" in panel.caption]
    assert captions[0] == "layer1.1: read for row 2, column 15"  # y 8 and x 63 of 64 at stride 4
    with pytest.raises(ValueError, match=r"^position 64 8 lies outside images of 64 x 64 pixels \(width x height\)$"):
        explain("gate_maps", [subject(pictures[:1], "resnet18_das")], position=(64, 8))


# Objects


def write_masks(folder, pictures, size=(80, 60)):
    folder.mkdir()
    for index, _ in enumerate(pictures):
        mask = np.zeros(size[::-1], dtype=np.uint8)
        mask[:30, :20], mask[40:, 60:] = 3, 5
        Image.fromarray(mask).save(folder / f"{index}.png")
    return folder


def test_scores_are_those_of_the_map_and_the_mask_as_the_model_sees_it(pictures, tmp_path):
    masks = write_masks(tmp_path / "masks", pictures)
    one = subject(pictures)
    target = next(str(at) for at in range(7) if grad_cam(one.model, one.images[:1], at).any())
    section = explain("sfd_score", [one], masks=masks, target=target)
    # a picture of 80 x 60, resized to 85 x 64 and its middle cropped
    region = one.region(open_regions(masks)(pictures[0]))
    assert region.shape == (64, 64)
    assert region[0, 0]
    assert region[-1, -1]
    assert not region[0, -1]
    want = sfd_score(grad_cam(one.model, one.images, int(target))[0], region)
    assert section.tables[0].rows[0] == ("0.png", f"{want.score:.3f}", f"{want.constant:.3f}")
    assert section.tables[0].rows[-1][0] == "mean of 2"
    assert section.tables[0].note.startswith("sfd = Σ t(G)")
    with pytest.raises(ValueError, match=r"^sfd_score needs to know where the objects are; give --masks"):
        explain("sfd_score", [one])


def test_masks_of_a_folder(pictures, tmp_path):
    masks = write_masks(tmp_path / "masks", pictures)
    found = np.asarray(open_regions(masks)(pictures[0]))
    assert {*np.unique(found)} == {0, 255}
    assert (found > 0).sum() == 30 * 20 + 20 * 20
    assert (np.asarray(open_regions(masks, ["5"])(pictures[1])) > 0).sum() == 20 * 20
    with pytest.raises(DataError, match=r"^mask class 'cat' must be a number, as it stands in the masks$"):
        open_regions(masks, ["cat"])
    (masks / "1.png").unlink()
    with pytest.raises(DataError, match=r"1.png: no file 1\{.png,.*\} in .*; one mask a picture is needed$"):
        open_regions(masks)(pictures[1])
    small = write_masks(tmp_path / "small", pictures, (40, 60))
    with pytest.raises(
        DataError, match=r"0.png: 80 x 60 pixels, and its mask in .* has 40 x 60; give masks of the pict"
    ):
        open_regions(small)(pictures[0])


def test_objects_of_coco(pictures, tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "0.png", "height": 60, "width": 80}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[10, 20, 30, 20, 30, 50, 10, 50]]},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 18,
                "segmentation": {"size": [60, 80], "counts": [0, 60, 4740]},
            },
            {"id": 3, "image_id": 8, "category_id": 1, "segmentation": [[0, 0, 80, 0, 80, 60]]},
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))

    def pixels(*classes):
        return np.asarray(open_regions(file, classes)(pictures[0])) > 0

    assert pixels("cat")[20:50, 10:30].all()
    assert pixels("cat").sum() == pytest.approx(600, abs=5)
    assert pixels("18")[:, 0].all()  # runs go down the columns
    assert pixels("dog").sum() == 60
    assert (pixels() == (pixels("cat") | pixels("dog"))).all()
    with pytest.raises(DataError, match=r"no category 'dag'; nearest: dog$"):
        open_regions(file, ["dag"])
    with pytest.raises(DataError, match=r"1.png: no image of that name in "):
        open_regions(file)(pictures[1])
    file.write_text("{}")
    with pytest.raises(DataError, match=r"instances.json: no annotations of COCO \(KeyError"):
        open_regions(file)
    with pytest.raises(DataError, match=r"masks.txt: neither a folder of masks nor COCO's annotations \(.json\)$"):
        open_regions(tmp_path / "masks.txt")


# The page


def test_the_page_is_whole_and_needs_nothing_else(pictures, tmp_path):
    name = '<b>&"x'
    one = subject(pictures[:1], label=name)
    sections = [explain(method, [one]) for method in ("grad_cam", "feature_map_variance")]
    write_explanation(tmp_path / "page.html", sections, f"What {name} looks at")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    images = page.all("img")
    assert len(images) == 3
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in images)
    assert name in "".join(page.text)
    assert "<b>" not in text
    assert not page.all("script")
    assert len(page.all("h2")) == 4
