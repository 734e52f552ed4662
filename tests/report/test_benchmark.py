"""The page of a benchmark: everything on it, nothing from elsewhere."""

import json
import re

from convattn.bench.growth import growth_of
from convattn.bench.latency import Latency
from convattn.bench.limits import Limits
from convattn.bench.profile import Operation, Profile
from convattn.bench.runtimes import Setting
from convattn.bench.table import BenchmarkRow, BenchmarkTable, NotMeasured
from convattn.report.benchmark import growth_table, profile_tables, write_benchmark
from html_page import Page


def row(model, runtime, milliseconds, size=224, **more):
    latency = Latency("x", milliseconds, milliseconds - 1, milliseconds + 1, milliseconds + 2, 5, 0.0)
    return BenchmarkRow(
        model, runtime, Setting(image_size=size), "", 10**6, 10**9, latency, 4 * 10**6 + size**2, **more
    )


TABLE = BenchmarkTable(
    (row("</script><b>", "fused", 20.0, top1=82.2, source="a page"), row("timm:b", "eager", 40.0)),
    {"torch": "2.x"},
    "timm:b",
    (NotMeasured("timm:b", "openvino", Setting(), "openvino is not installed"),),
)


def test_the_page_has_the_figures_and_the_data_of_its_plot(tmp_path):
    write_benchmark(tmp_path / "page.html", TABLE)
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert "Benchmark of 2 models" in page.words
    assert "a: top-1 as published" not in page.words and "top-1 as published, a page" in page.words
    assert "timm:b, openvino, batch 1, 224 px, fp32, cpu: openvino is not installed" in page.words
    assert page.all("b") == []  # escaped
    (data,) = re.findall(r"^const data = (.*);$", text, flags=re.MULTILINE)
    rows = json.loads(data)["rows"]
    assert [(one["model"], one["top1"], one["median_ms"], one["per_mac"]) for one in rows] == [
        ("</script><b>", 82.2, 20.0, 0.5),
        ("timm:b", None, 40.0, 1.0),
    ]
    assert not re.search(r"(src|href)=", text) and "http-equiv" in text
    assert {"across", "up", "setting", "runtimes", "models", "plot", "tip"} <= {
        attributes.get("id") for _, attributes in page.elements
    }


def test_nothing_measured_is_a_page_too(tmp_path):
    write_benchmark(tmp_path / "page.html", BenchmarkTable((), {"torch": "2.x"}, interrupted=True))
    assert (
        "Interrupted: what was measured until then. 0 measurements" in Page((tmp_path / "page.html").read_text()).words
    )


def test_growth_in_words(tmp_path):
    rows = tuple(row("a", "fused", size**2 / 1000, size) for size in (100, 200, 400))
    table = growth_table(growth_of(BenchmarkTable(rows, {})))
    ((name, over, times, peaks, time, memory, macs),) = table.rows
    assert (name, over, times) == ("a, fused, fp32", "pixels: 100, 200, 400 px", "10.0, 40.0, 160.0")
    assert (peaks, time, memory, macs) == ("4, 4, 4", "1.00 ± 0.00", "1.00 ± 0.00", "0.00")
    write_benchmark(tmp_path / "page.html", TABLE, [table])
    assert "How cost grows" in Page((tmp_path / "page.html").read_text()).words


def test_a_profile_shows_the_ten_dearest():
    operations = tuple(
        Operation(f"layers.{index}", "aten.mm", ((2, 3), (3, 4)), 1, 12.0 - index, 10**6, 100, 2.0)
        for index in range(12)
    )
    dearest, kinds = profile_tables("a", Profile(operations, 90.0, Limits(1e9, (1, 2, 3), 2e9)))
    assert [cells[0] for cells in dearest.rows] == [f"layers.{index}" for index in range(10)]
    assert dearest.rows[0][1:] == ("aten.mm", "2x3 3x4", "1", "12.00", "15", "1", "2.00", "6.0")
    assert kinds.rows == (("aten.mm", "12", "78.00", "100", "24.00", "3.2"),)
    assert "1 GMAC/s (1 x 2 by 2 x 3), 2.0 GB/s" in dearest.note
