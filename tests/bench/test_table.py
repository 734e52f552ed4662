"""Rows as text and as data."""

import json

import pytest

from convattn.bench.latency import Latency
from convattn.bench.runtimes import Setting
from convattn.bench.table import BenchmarkRow, BenchmarkTable, NotMeasured


def row(model, runtime, macs, milliseconds, setting=Setting(), **more):  # noqa: B008
    latency = Latency("x", milliseconds, milliseconds - 1, milliseconds + 1, milliseconds + 2, 5, 3.0)
    return BenchmarkRow(model, runtime, setting, "channels_last", 11_506_536, macs, latency, **more)


TABLE = BenchmarkTable(
    (
        row("a", "eager", 10**9, 30.0, peak_bytes=50 * 2**20, top1=82.2, source="a page"),
        row("a", "fused", 10**9, 20.0, top1=82.2, source="a page"),
        row("a", "onnxruntime", 10**9, 12.0),
        row("b", "eager", 2 * 10**9, 40.0),
        row("b", "onnxruntime", 2 * 10**9, 30.0),
        row("a", "eager", 10**9, 100.0, Setting(batch_size=4)),
    ),
    {"torch": "2.x"},
    "b",
    (NotMeasured("b", "openvino", Setting(), "openvino is not installed"),),
)


def test_ratios_are_per_multiply_add_in_the_same_runtime_and_setting():
    ratios = [TABLE.per_mac(one) for one in TABLE.rows]
    assert ratios == [pytest.approx(1.5), pytest.approx(1.0), pytest.approx(0.8), 1.0, 1.0, None]
    assert TABLE.ratios(Setting()) == [
        ("model", "eager", "fused", "onnxruntime"),
        ("a", "1.50", "1.00", "0.80"),
        ("b", "1.00", "-", "1.00"),
    ]


def test_images_a_second_count_the_batch():
    assert TABLE.rows[5].images_per_second == pytest.approx(40)
    assert TABLE.rows[5].nanoseconds_per_mmac == pytest.approx(1e9 * 0.1 / 4000)


def test_as_markdown():
    text = TABLE.to_markdown()
    assert "batch 1, 224 px, fp32, cpu" in text and "batch 4, 224 px, fp32, cpu" in text
    assert "| a | eager (channels_last) | 30.0 | 29.0–31.0 | 32.0 | 33.3 | 50 | 3 | 1.00 | 11.5 | 1.50 | 82.2 |" in text
    assert "| a | onnxruntime | 12.0 | 11.0–13.0 | 14.0 | 83.3 | - | 3 | 1.00 | 11.5 | 0.80 | - |" in text
    assert "b, openvino, batch 1, 224 px, fp32, cpu: openvino is not installed" in text
    assert text.endswith("a: top-1 as published, a page")
    assert "per MAC" not in BenchmarkTable(TABLE.rows, {}).to_markdown()


def test_small_figures_keep_their_digits():
    cells = TABLE.cells(row("c", "fused", 16_622_720, 1.234))
    assert cells[2:5] == ("1.23", "0.23–2.23", "3.23")
    assert cells[8] == "0.0166"


def test_as_data():
    data = json.loads(json.dumps(TABLE.to_dict()))
    first = data["rows"][0]
    assert (first["model"], first["batch_size"], first["median_ms"], first["p95_ms"]) == ("a", 1, 30.0, 32.0)
    assert (first["per_mac"], first["peak_bytes"], first["source"]) == (pytest.approx(1.5), 50 * 2**20, "a page")
    assert data["not_measured"][0]["why"] == "openvino is not installed"
    assert data["interrupted"] is False
