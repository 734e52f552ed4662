"""The pages as a browser shows them, on a screen and on a telephone. Names are long on purpose."""

import math

import pytest
from PIL import Image

from convattn.ablation.costs import Costs
from convattn.ablation.design import Comparison, Design
from convattn.ablation.page import write_page
from convattn.ablation.plan import Plan
from convattn.ablation.results import Results, Row
from convattn.ablation.search.halving import Halved, Rung
from convattn.ablation.search.page import write_search_page
from convattn.ablation.search.results import SearchResults
from convattn.ablation.search.study import Network
from convattn.ablation.statistics import paired_interval
from convattn.bench.latency import Latency
from convattn.bench.runtimes import Setting
from convattn.bench.table import BenchmarkRow, BenchmarkTable, NotMeasured
from convattn.classification.options import METRICS
from convattn.page import (
    Command,
    Confusion,
    Curve,
    Epoch,
    Figure,
    FusionRow,
    Gallery,
    GalleryItem,
    LatencyRow,
    Parity,
    ParityRow,
    Plot,
    Plots,
    Report,
    RunCurves,
    StageRow,
    Table,
)
from convattn.report.benchmark import write_benchmark
from convattn.report.contact_sheet import write_contact_sheet
from convattn.report.explaining.page import write_explanation
from convattn.report.explaining.section import Panel, Section, Strip
from convattn.report.write import write_report
from convattn.rooms import data_of
from convattn.training.config import RunConfig
from headless_chromium import CHROMIUM, Browser
from tiny_masks import write_mask, write_masked

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")

WIDTHS = (1400, 400)
LONG = "a_name_without_any_space_that_is_longer_than_a_telephone_is_wide"
CLASSES = ("cat", "golden retriever of the north", LONG, *(f"class {index}" for index in range(17)))

# What is cut off, and is neither an area that scrolls and takes the focus nor ends in dots and has the full text.
CUT = """(() => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const cut = [];
  for (const one of document.querySelectorAll("body *:not(select):not(option)")) {
    const style = getComputedStyle(one), hides = (value) => value !== "visible";
    const isCut = (hides(style.overflowX) && one.scrollWidth > one.clientWidth + 1)
      || (hides(style.overflowY) && one.scrollHeight > one.clientHeight + 1);
    if (!isCut || !one.clientWidth) continue;
    if (one.matches(".scroll, pre") && one.tabIndex === 0) continue;
    if (style.textOverflow === "ellipsis" && one.title) continue;
    cut.push(one.outerHTML.slice(0, 200));
  }
  return cut;
})()"""

STICKS_OUT = """[...document.querySelectorAll(".latency .spread")].filter((one) => {
  const spread = one.getBoundingClientRect(), cell = one.parentElement.getBoundingClientRect();
  return spread.left < cell.left - 0.5 || spread.right > cell.right + 0.5;
}).length + [...document.querySelectorAll("#plot .spread")].filter((one) => {
  const grid = document.querySelector("#plot .grid").getBBox(), spread = one.getBBox();
  return spread.x < grid.x - 0.5 || spread.x + spread.width > grid.x + grid.width + 0.5;
}).length"""

BEYOND = """(() => {
  const edge = document.documentElement.clientWidth, isBeyond = (one) => one.getBoundingClientRect().right > edge + 0.5;
  return document.documentElement.scrollWidth <= edge ? [] : [...document.querySelectorAll("body *")]
    .filter((one) => isBeyond(one) && !one.closest(".scroll, pre")).map((one) => one.outerHTML.slice(0, 200));
})()"""

SCROLLING = """[...document.querySelectorAll(".scroll, pre")].filter((one) => one.checkVisibility())
  .map((one, at) => one.id ||= `at${at}`)"""

PLOT = """(() => {
  const {left, top, width, height} = document.querySelector(".plot").getBoundingClientRect();
  return [left, top, width, height];
})()"""

READINGS = """[...document.querySelectorAll(".reading p")].filter((one) => one.checkVisibility())
  .map((one) => one.innerText)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_report(folder / "report.html", everything(folder))
    write_benchmark(folder / "benchmark.html", measurements())
    for name in ("cat", LONG):
        (folder / "data" / name).mkdir(parents=True)
        Image.new("RGB", (300, 20), (len(name), 0, 0)).save(folder / "data" / name / f"{name}.png")
    room = data_of()
    opened = room.open_splits(folder / "data")
    check = room.check_data(opened)
    write_contact_sheet(folder / "contact_sheet.html", check, opened.splits, folder / "data" / LONG, room)
    masks = write_masked(folder / "masked")
    (masks / "classes.txt").write_text(f"sky\n{LONG}\nroad\n")
    write_mask(masks / "masks" / "train" / "0.png", [[0, 7]])
    room = data_of("segmentation")
    opened = room.open_splits(masks)
    write_contact_sheet(folder / "masks.html", room.check_data(opened), opened.splits, masks / LONG, room)
    write_explanation(folder / "explanation.html", explanations(), f"What {LONG} looks at")
    write_page(folder / "ablation.html", comparison())
    write_search_page(folder / "search.html", search())
    return folder


def everything(folder):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "image.png")
    image = (folder / "image.png").read_bytes()
    figures = [dict(train_loss=1 / number, val_loss=0.5, top1=90 + number / 100, lr=0.1) for number in range(1, 31)]
    epochs = tuple(Epoch(number, None, one) for number, one in enumerate(figures, 1))
    counts = tuple(tuple(1000 if row == column else row * column for column in range(20)) for row in range(20))
    return Report(
        title=f"{LONG} on {LONG}",
        summary=f"Run in runs/{LONG}.",
        figures=tuple(Figure(f"Figure {index}", "97.10 %", LONG) for index in range(5)),
        epochs=epochs,
        metrics=METRICS,
        runs=tuple(RunCurves(f"{LONG}/{index}", epochs, METRICS) for index in range(12)),
        tables=(
            Table(
                "Settings", ("Setting", *(f"sweep/{index}" for index in range(12))), (("data.source", *[LONG] * 12),)
            ),
        ),
        plots=Plots(
            "Precision and recall",
            LONG,
            (Plot(LONG, "recall", tuple(Curve(name, ((0, 100.0), (70, 50.0)), "40 %") for name in CLASSES[:8])),),
        ),
        confusion=Confusion(CLASSES, counts),
        gallery=Gallery(
            "Where it looks",
            "Three of them.",
            tuple(
                GalleryItem(((image, name),) * 2, CLASSES[1], 0.5, "" if own else name, own, f"{name}.png")
                for name in CLASSES[:3]
                for own in [name == CLASSES[1]]
            ),
        ),
        stages=(StageRow(f"stages.0.{LONG}", (640, 160, 160), 10**9, 10**12),),
        latency=(LatencyRow("eager", 4.0, 0.5, 40.0), LatencyRow(LONG, 30.0, 29.0, 41.0)),
        parity=Parity(LONG, 1e-4, (ParityRow((2, 3, 1024, 1024), 3e-7),)),
        fusion=(FusionRow(f"stages.0.{LONG}", f"folded into {LONG}"),),
        environment=(("torch", LONG),),
        commands=(Command(f"convattn predict {LONG} {LONG} --output {LONG}.csv", f"Predict {LONG}"),),
    )


def explanations():
    def panels(count, size):
        return tuple(Panel(Image.new("RGB", size, (at, 0, 0)), f"{LONG}, {at}", size[0] > 300) for at in range(count))

    strips = [
        Strip(f"{LONG}.png", panels(7, (96, 96))),
        Strip("", panels(2, (540, 340))),
        Strip(LONG, panels(1, (9, 3))),
    ]
    table = Table("Areas", ("model", *(f"{LONG} {at}" for at in range(5))), ((LONG, *["95 px, 97.9 %"] * 5),))
    return [Section("grad_cam", "Grad-CAM", f"Of {LONG}.", tuple(strips), (table,))]


def comparison():
    designs = tuple(
        Design(name, note=LONG, published=80.1, role=role)
        for name, role in (("none", "base"), (LONG, "design"), ("two words", "control"))
    )
    several = Comparison(f"Blocks in {LONG}", (*designs, Design(f"{LONG}2", missing=LONG)), LONG, LONG, LONG)
    costs = Costs(10**7, 10**9, 4.0, 3.0, 9.0, 0.5, 100.0, 10, 2**30)
    plan = Plan(several, RunConfig(), {design.name: costs for design in designs}, environment=(("Processor", LONG),))
    rows = []
    for at, design in enumerate(designs):
        figures = {seed: 70 + 3 * at + 0.7 * seed for seed in range(5)}
        interval = paired_interval([3 * at, 3 * at + 1]) if at else None
        rows.append(Row(design, costs, 100, figures, 60.0, interval, None, 0.04 if at else None, f"{LONG} is better"))
    return Results(plan, METRICS[0], {"epochs": tuple(rows)}, LONG, 0.5)


def search():
    one = comparison()
    kept = one.plan.comparison.designs[1]
    options = {"mixers": (LONG, "sam+cot") * 2, "dims": (640,) * 4, "depths": (6,) * 4, "mlp_ratios": (4,) * 4}
    networks = {number: Network(number, options, 4.0) for number in range(9)}
    halved = Halved((Rung(1, 9), Rung(3, 3)), (dict.fromkeys(networks, 40.0), {3: 45.0}), {3: 40.0})
    return SearchResults(one, halved, networks, 99, {"latency": 90}, "10^19", 5.0, LONG, kept, {kept.name: 47.0})


def measurements():
    rows = []
    for number, model in enumerate(("smt_tiny", "nextvit_small", LONG)):
        for runtime in ("eager", "fused", "openvino"):
            latency = Latency(model, 10.0 + number, 1.0, 50.0, 60.0, 5, 0.0)
            more = dict(top1=82.2 + number / 10, source=f"the paper of {LONG}")
            rows.append(BenchmarkRow(model, runtime, Setting(), "channels_last", 10**8, 10**10, latency, 2**28, **more))
    missing = (NotMeasured(LONG, "tensorrt", Setting(), "not installed"),)
    return BenchmarkTable(tuple(rows), {"torch": "2.x"}, "smt_tiny", missing)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["report", "benchmark", "contact_sheet", "masks", "explanation", "ablation", "search"])
def test_nothing_is_cut_without_a_sign(browser, pages, page, width):
    browser.problems.clear()
    browser.open(pages / f"{page}.html", width)
    assert browser.value(CUT) == []
    assert browser.value(BEYOND) == []
    assert browser.value(STICKS_OUT) == 0
    assert browser.problems == []  # errors, and what the page may not do


@pytest.mark.parametrize("page", ["report", "benchmark", "explanation"])
def test_the_keyboard_reaches_and_scrolls_whatever_scrolls(browser, pages, page):
    browser.open(pages / f"{page}.html", 400)
    places = browser.value(SCROLLING)
    reached = []
    for _ in range(100):
        browser.press("Tab")
        reached.append(browser.value("document.activeElement.id"))
        if set(places) <= set(reached):
            break
    assert [one for one in reached if one in places] == places
    focus = f"{SCROLLING}.map((id) => document.getElementById(id)).find((one) => one.scrollWidth > one.clientWidth)"
    browser.value(f"{focus}.focus()")
    browser.press("ArrowRight")
    scrolled = f"const look = () => {focus}.scrollLeft > 0 ? done(true) : requestAnimationFrame(look); look();"
    assert browser.value(f"new Promise((done) => {{ {scrolled} }})")


def test_pointing_at_a_curve_shows_its_values(browser, pages):
    for width in WIDTHS:
        browser.open(pages / "report.html", width, height=2000)
        plot = browser.value(PLOT)
        for share, epoch in ((0.0, 1), (14.2 / 29, 15), (1.0, 30)):
            browser.point(math.floor(plot[0] + 1 + share * (plot[2] - 2)), plot[1] + plot[3] / 2)
            (shown,) = browser.value(READINGS)
            assert shown.split() == ["epoch", str(epoch), "training", f"{1 / epoch:.3f}", "validation", "0.500"]
            assert browser.value(BEYOND) == []
