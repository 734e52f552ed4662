import io
import re
from dataclasses import replace
from datetime import datetime

import pytest
from PIL import Image

from convattn.classification.options import METRICS
from convattn.page import (
    Command,
    Confusion,
    Epoch,
    Figure,
    FusionRow,
    Gallery,
    GalleryItem,
    LatencyRow,
    Parity,
    ParityRow,
    Report,
    RunCurves,
    StageRow,
    Table,
)
from convattn.report.templates import short_count
from convattn.report.write import render, write_report
from html_page import Page

HOSTILE = "<script>alert('1')</script>\"&' onload=x {{ 7*7 }}</style>"


def epoch(number, train_loss=None, val_loss=None, top1=None, lr=None, images_per_second=None, seconds=None):
    """A point of the curves of a classifier."""
    figures = dict(train_loss=train_loss, val_loss=val_loss, top1=top1, lr=lr)
    return Epoch(number, None, figures | dict(images_per_second=images_per_second, seconds=seconds))


def picture(kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def report():
    return Report(
        title="a model",
        summary="trained on cats",
        figures=(Figure("Accuracy", "97.10 %", "below the target", is_warning=True), Figure("Parameters", "654 k")),
        epochs=(epoch(1, 2.0, 1.5, 40.0, 1e-3, 1.0), epoch(2, 1.0, None, 60.0), epoch(3, 0.5, 0.75, 97.1)),
        metrics=METRICS,
        runs=(RunCurves("plain", (epoch(1, 2.0, 1.5, 40.0),), METRICS), RunCurves("gated", (epoch(1, 1.0),), METRICS)),
        tables=(
            Table("Settings", ("Field", "Value"), (("a.b", "7"),), frozenset({1}), "Those set."),
            Table("No", (), ()),
        ),
        confusion=Confusion(("cat", "dog"), ((9, 1), (3, 7))),
        gallery=Gallery(
            "Where it looks",
            "Two of them.",
            (
                GalleryItem(((picture(), "cat"), (picture("JPEG"), "heat")), "cat", 0.987, "", True, "one.png"),
                GalleryItem(((picture(), "cat"), (picture(), "heat")), "dog", 0.5, "cat", False, "two.png"),
            ),
        ),
        stages=(StageRow("stem", (8, 16, 16), 1_000, 2_000_000), StageRow("head", (10,), 3_000, 3_000)),
        latency=(LatencyRow("eager", 4.0, 3.5, 5.0), LatencyRow("fused", 2.0, 1.9, 2.2)),
        latency_note="One image.",
        parity=Parity("model.onnx", 1e-4, (ParityRow((2, 3, 32, 32), 3e-7), ParityRow((1, 3, 32, 32), 2e-3))),
        fusion=(FusionRow("stem", "batch norm folded"),),
        environment=(("torch", "2.15.0"),),
        commands=(Command("convattn models", "See what there is"),),
    )


def test_everything_is_on_the_page(report):
    page = Page(render(report, datetime(2026, 1, 2, 3, 4)))
    for words in (
        "a model", "trained on cats", "97.10 %", "below the target", "4 of 20 images are classified wrongly",
        "Most often confused", "3 of 10", "90.0 %", "Wrong 1", "Right 1", "98.7 %", "one.png", "Two of them.",
        "8 × 16 × 16", "4,000", "2.00 M", "4.00 ms", "3.50–5.00", "2.00 ×", "1 × 3 × 32 × 32", "2.0e-03",
        "Settings Those set. Field Value a.b 7", "plain gated Top-1", "How they learned",
        "batch norm folded", "torch 2.15.0", "convattn models", "Written 2026-01-02 03:04",
    ):  # fmt: skip
        assert words in page.words, words
    classes = [attributes.get("class", "") for _, attributes in page.elements]
    assert classes.count("warning") == 1
    assert classes.count("failed") == classes.count("ok") == 1
    assert len([name for name in classes if name.split()[:1] == ["wrong"] and "none" not in name]) == 2


def test_it_needs_nothing_else_and_can_be_read_by_everyone(report):
    text = render(report)
    page = Page(text)
    assert not re.search(r"//\w|url\(|@import", re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text))
    assert not any({"href", "srcset", "action"} & attributes.keys() for _, attributes in page.elements)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    assert all(image["src"].startswith(("data:image/png;base64,", "data:image/jpeg;")) for image in page.all("img"))
    assert all(image["alt"].strip() for image in page.all("img"))
    assert all(plot["aria-label"] for plot in page.all("div") if plot.get("role") == "img")
    assert all(heading["scope"] in ("row", "col") for heading in page.all("th"))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {section["aria-labelledby"] for section in page.all("section")} == set(identifiers)
    assert "prefers-color-scheme: dark" in text
    assert page.all("html")[0]["lang"] == "en"


def test_sections_without_data_are_absent():
    page = Page(render(Report("only a title")))
    assert page.all("section") == page.all("table") == page.all("img") == page.all("dl") == []
    assert "only a title" in page.words


@pytest.mark.parametrize(
    ("field", "heading"),
    [
        ("epochs", "How it learned"),
        ("runs", "How they learned"),
        ("tables", "Settings"),
        ("confusion", "What it confuses"),
        ("gallery", "Where it looks"),
        ("stages", "The model"),
        ("latency", "How fast it runs"),
        ("parity", "Export"),
        ("fusion", "Fusion"),
        ("environment", "Environment"),
        ("commands", "Go on from here"),
    ],
)
def test_each_section_stands_alone(report, field, heading):
    assert heading in Page(render(report)).words
    assert heading not in Page(render(replace(report, **{field: getattr(Report(""), field)}))).words
    assert heading in Page(render(Report("alone", **{field: getattr(report, field)}))).words


def test_a_row_that_does_not_fit_its_table_is_an_error():
    with pytest.raises(ValueError, match=r"row \('a', 'b'\) of 'T' has 2 cells for 1 columns"):
        Table("T", ("one",), (("a", "b"),))


def test_hostile_names_are_only_text(report):
    hostile = replace(
        report,
        title=HOSTILE,
        summary=HOSTILE,
        figures=(Figure(HOSTILE, HOSTILE, HOSTILE),),
        runs=(RunCurves(HOSTILE, (epoch(1, 1.0),)),),
        tables=(Table(HOSTILE, (HOSTILE, ""), ((HOSTILE, HOSTILE),), note=HOSTILE),),
        confusion=Confusion((HOSTILE, "dog"), ((9, 1), (3, 7))),
        gallery=Gallery(
            HOSTILE, HOSTILE, (GalleryItem(((picture(), HOSTILE),) * 3, HOSTILE, 0.5, HOSTILE, False, HOSTILE),)
        ),
        stages=(StageRow(HOSTILE, (1,), 0, 0),),
        latency=(LatencyRow(HOSTILE, 1.0, 1.0, 1.0),),
        latency_note=HOSTILE,
        parity=Parity(HOSTILE, 1e-4, ()),
        fusion=(FusionRow(HOSTILE, HOSTILE),),
        environment=((HOSTILE, HOSTILE),),
        commands=(Command(HOSTILE, HOSTILE),),
    )
    page = Page(render(hostile))
    harmless = Page(render(report))
    assert not page.all("script")
    assert len(page.all("style")) == 1
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in harmless.elements}
    assert page.words.count(HOSTILE) == 35  # the title twice: in the window and on the page
    assert page.all("img")[0]["alt"] == f"Sample {HOSTILE}: {HOSTILE}"


def test_many_classes_become_a_list_of_pairs():
    names = tuple(f"class {index:02d}" for index in range(21))
    counts = [[0] * 21 for _ in names]
    for index in range(21):
        counts[index][index] = 5
        counts[index][(index + 1) % 21] = index
    page = Page(render(Report("many", confusion=Confusion(names, tuple(map(tuple, counts))))))
    assert "matrix" not in [table.get("class") for table in page.all("table")]
    first = page.words.index("class 20 class 00 20 of 25")
    assert first < page.words.index("class 19 class 20 19 of 24")
    assert page.words.count(" of ") == 1 + 20  # the sentence, and the twenty pairs there are


def test_twenty_classes_are_a_matrix():
    names = tuple(f"class {index:02d}" for index in range(20))
    counts = tuple(tuple(int(row == column) for column in range(20)) for row in range(20))
    page = Page(render(Report("many", confusion=Confusion(names, counts))))
    assert [table["class"] for table in page.all("table")] == ["matrix upright"]
    assert "All 20 images are classified correctly." in page.words


def test_a_class_without_images_and_a_model_without_cost():
    page = Page(
        render(Report("x", confusion=Confusion(("a", "b"), ((2, 0), (0, 0))), stages=(StageRow("s", (1,), 0, 0),)))
    )
    assert "All 2 images" in page.words


def test_counts_that_do_not_fit_the_names():
    with pytest.raises(ValueError, match=r"^counts are 1 rows of \[2\]; 2 classes need 2 of each$"):
        Confusion(("a", "b"), ((1, 2),))


def test_images_of_another_kind(report):
    item = replace(report.gallery.items[0], pictures=((b"GIF89a", "a moving one"),))
    with pytest.raises(ValueError, match=r"^an image that starts with b'GIF89a' is neither PNG nor JPEG"):
        render(replace(report, gallery=replace(report.gallery, items=(item,))))


def test_a_failed_write_leaves_the_old_report(report, tmp_path):
    path = write_report(tmp_path / "new folder" / "report.html", report)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        write_report(path, replace(report, gallery=Gallery("", "", (GalleryItem(((b"", ""),), "", 0.5),))))
    assert path.read_bytes() == before
    write_report(path, replace(report, title="second"))
    assert b"second" in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (654_321, "654 k"),
        (999_600, "1.00 M"),
        (12.34e6, "12.3 M"),
        (5e9, "5.00 G"),
    ],
)
def test_short_counts(number, text):
    assert short_count(number) == text
