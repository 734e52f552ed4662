"""The benchmark's table: what it holds, what it leaves out and says so."""

import pytest
import torch

import convattn
from convattn.bench.compare import BenchmarkRow, BenchmarkTable
from convattn.bench.forms import FORMS, Unavailable, prepare
from convattn.bench.latency import Latency
from toys import build_toy, relative_error


@pytest.mark.parametrize("form", [form for form in FORMS if form != "compiled"])
def test_every_form_gives_the_models_numbers(form):
    model, images = build_toy("smt_nano"), torch.randn(2, 3, 32, 32)
    output = prepare(model, form, images)()
    with torch.inference_mode():
        assert relative_error(output[0] if isinstance(output, list) else output, model(images)) < 1e-5


@pytest.mark.slow  # inductor compiles for half a minute
def test_the_compiled_form_gives_the_models_numbers():
    model, images = build_toy("smt_nano"), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert relative_error(prepare(model, "compiled", images)(), model(images)) < 1e-5


def test_forms_that_do_not_exist_say_why():
    with pytest.raises(Unavailable, match="float32 only"):
        prepare(build_toy("smt_nano").bfloat16(), "onnxruntime", torch.randn(1, 3, 32, 32).bfloat16())
    with pytest.raises(Unavailable, match="nothing to fuse"):
        prepare(convattn.create_model("timm:resnet18", num_classes=3).eval(), "fused", torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="form 'jit' is unknown; choose among eager"):
        prepare(build_toy("smt_nano"), "jit", torch.randn(1, 3, 32, 32))


def test_one_run():
    threads = torch.get_num_threads()
    table = convattn.benchmark(
        ("smt_nano", "timm:resnet18"), forms=("eager", "fused"), image_size=32, repeats=2, warmup=0
    )
    assert torch.get_num_threads() == threads
    assert [(row.model, row.form) for row in table.rows] == [
        ("smt_nano", "eager"),
        ("smt_nano", "fused"),
        ("timm:resnet18", "eager"),
    ]
    assert table.rows[0].macs == convattn.count(convattn.create_model("smt_nano"), (3, 32, 32)).macs
    assert "timm:resnet18, fused" in table.unavailable
    text = table.to_markdown(reference="timm:resnet18")
    assert "| timm:resnet18 | eager |" in text
    assert "timm:resnet18, fused: not measured, nothing to fuse" in text
    assert torch.__version__ in text


def test_ratios_are_per_multiply_add_over_the_better_layout():
    def row(model, form, macs, milliseconds):
        return BenchmarkRow(model, form, macs, Latency(form, milliseconds, milliseconds, milliseconds, 1, None))

    rows = (row("a", "eager", 100, 30.0), row("b", "eager", 200, 50.0), row("b", "channels_last", 200, 40.0))
    ratios = BenchmarkTable(rows, 1, 224, "fp32", {}).per_mac("b")
    assert ratios == pytest.approx({("a", "eager"): 1.5, ("b", "eager"): 1.25, ("b", "channels_last"): 1.0})


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="precision 'int8' is unknown; choose one of fp32, bf16"):
        convattn.benchmark(["smt_nano"], precision="int8")
    with pytest.raises(ValueError, match="form 'jit' is unknown"):
        convattn.benchmark(["smt_nano"], forms=["jit"])
    with pytest.raises(ValueError, match="unknown model 'smt_nono'; nearest: smt_nano"):
        convattn.benchmark(["smt_nono"])
