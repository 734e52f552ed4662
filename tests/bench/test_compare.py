"""A comparison: what it measures, what it leaves out and says so."""

import json

import pytest
import torch

import convattn
from convattn.bench import compare, runtimes
from convattn.bench.latency import Interrupted
from convattn.extras import MissingExtra
from convattn.model_files import save_model
from tiny_exports import write_sealed
from toys import build_toy

QUICK = dict(image_sizes=(32,), repeats=2, warmup=0, memory=False, reference=None)


def test_one_run():
    threads, told = torch.get_num_threads(), []
    table = convattn.benchmark(
        ["smt_nano"],
        runtimes=["eager", "fused"],
        precisions=["fp32", "bf16"],
        image_sizes=(32,),
        threads=1,
        repeats=2,
        warmup=0,
        memory=False,
        reference="timm:test_resnet",
        progress=told.append,
    )
    assert torch.get_num_threads() == threads
    assert [(row.setting.precision, row.model, row.runtime) for row in table.rows] == [
        (precision, model, runtime)
        for precision in ("fp32", "bf16")
        for model in ("smt_nano", "timm:test_resnet")
        for runtime in ("eager", "fused")
    ]
    row = table.rows[0]
    assert row.macs == convattn.count(convattn.create_model("smt_nano"), (3, 32, 32)).macs
    assert row.layout in ("contiguous", "channels_last")
    assert row.latency.repeats == 2
    assert table.per_mac(table.rows[2]) == 1
    assert table.environment["threads"] == "1"
    assert "batch 1, 32 px, fp32, cpu: preparing smt_nano, fused (2 of 4)" in told


def test_what_is_asked_for_twice_is_measured_once():
    twice = QUICK | dict(image_sizes=(32, 32), batch_sizes=(1, 1), precisions=("fp32", "fp32"))
    table = convattn.benchmark(["timm:test_resnet"] * 2, runtimes=["eager", "eager"], **twice)
    assert len(table.rows) == 1


def test_the_reference_is_measured_in_what_the_forms_are_compared_with():
    table = convattn.benchmark(["smt_nano"], runtimes=["fused"], **QUICK | dict(reference="timm:test_resnet"))
    assert [(row.model, row.runtime) for row in table.rows] == [
        ("smt_nano", "fused"),
        ("timm:test_resnet", "eager"),
        ("timm:test_resnet", "fused"),
    ]
    assert table.per_mac(table.rows[0]) > 0
    assert table.per_mac(table.rows[1]) == 1


def test_accuracies_are_the_published_ones_of_that_size():
    def published(name, size):
        found = convattn.backbones.registry.published_accuracy(name, size)
        return found and (found.top1, found.source)

    assert published("smt_tiny", 224) == (82.2, "README of github.com/AFeng-x/SMT")
    assert published("nextvit_small", 384)[0] == 83.6
    assert published("nextvit_small.ssld_6m_in1k", 224)[0] == 84.8
    assert published("groupmixformer_small", 384) == (85.0, "arXiv 2311.15157")
    assert published("resnet50_das", 224) == (78.04, "arXiv 2311.12091")
    assert published("smt_tiny", 256) is None
    assert published("nextvit_small.in1k_384", 224) is None
    assert published("timm:resnet50", 224) is None
    assert published("smt_nano", 224) is None


def test_a_failure_costs_its_own_row_only(monkeypatch):
    def write_file(model, runtime, setting, folder):
        raise MissingExtra('onnx is not installed; run: pip install "convattn[onnx]"')

    monkeypatch.setattr(runtimes, "write_file", write_file)
    table = convattn.benchmark(["smt_nano"], runtimes=["fused", "onnxruntime", "prepacked"], **QUICK)
    assert [row.runtime for row in table.rows] == ["fused", "prepacked"]
    (gap,) = table.not_measured
    assert (gap.model, gap.runtime) == ("smt_nano", "onnxruntime")
    assert gap.why == 'onnx is not installed; run: pip install "convattn[onnx]"'

    too_small = convattn.benchmark(["nextvit_nano", "smt_nano"], runtimes=["fused"], **QUICK | dict(image_sizes=(2,)))
    assert too_small.rows == ()
    assert [gap.model for gap in too_small.not_measured] == ["nextvit_nano", "smt_nano"]
    assert "2 x 2" in too_small.not_measured[1].why


def test_models_are_told_by_where_they_are_too(tmp_path):
    """A model file and an exported one, beside a model by name, at the size that the first of them takes."""
    saved, exported = str(tmp_path / "toy.safetensors"), str(write_sealed(tmp_path, "torch_export", size=(3, 32, 48)))
    save_model(build_toy("smt_nano", num_classes=10), saved)
    options = QUICK | dict(runtimes=["eager"])
    table = convattn.benchmark([saved, exported, "smt_nano"], **options | dict(image_sizes=[(32, 48)]))
    assert [(row.model, row.runtime) for row in table.rows] == [
        (saved, "eager"),
        (exported, "torch_export"),
        ("smt_nano", "eager"),
    ]
    assert table.rows[1].macs is None and "-" in table.cells(table.rows[1])
    assert json.loads(json.dumps(table.to_dict()))["rows"][1]["per_mac"] is None

    other = convattn.benchmark([exported, saved], **options | dict(image_sizes=None, precisions=["fp32", "bf16"]))
    assert {row.setting.image_size for row in other.rows} == {(3, 32, 48)}
    (gap,) = other.not_measured
    assert (gap.model, gap.why) == (exported, "the file is in fp32")


def test_ctrl_c_leaves_what_was_measured(monkeypatch):
    def write_file(model, runtime, setting, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtimes, "write_file", write_file)
    with pytest.raises(Interrupted) as stopped:
        convattn.benchmark(["smt_nano"], runtimes=["fused", "onnxruntime"], **QUICK)
    table = stopped.value.measured
    assert table.interrupted
    assert [row.runtime for row in table.rows] == ["fused"]


def test_ctrl_c_between_turns_leaves_the_turns_before(monkeypatch):
    def stopped(named, **options):
        raise Interrupted(compare.measure_latency_again(named, repeats=1, warmup=0))

    monkeypatch.setattr(compare, "measure_latency_again", compare.measure_latency, raising=False)
    monkeypatch.setattr(compare, "measure_latency", stopped)
    with pytest.raises(Interrupted) as interrupted:
        convattn.benchmark(["smt_nano"], runtimes=["fused"], **QUICK)
    (row,) = interrupted.value.measured.rows
    assert row.latency.repeats == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(precisions=["fp8"]), "precision 'fp8' is unknown; choose among fp32, bf16, fp16, int8"),
        (dict(runtimes=["jit"]), "runtime 'jit' is unknown; known: "),
        (dict(models=["smt_nono"]), "unknown model 'smt_nono'; nearest: smt_nano"),
        (dict(reference="timm:resnet5"), "unknown timm model 'resnet5'; nearest: resnet50"),
        (dict(models=[]), "nothing to measure: give at least one model"),
        (dict(models=["runs/mine"]), "runs/mine: no such file"),
        (dict(models=["mine.onnx"]), "mine.onnx: no such file"),
        (dict(batch_sizes=[0]), "batch 0 must be 1 or more"),
        (dict(threads=0), "threads 0 must be 1 to "),
        (dict(repeats=0), "repeats 0 must be 1 or more"),
        (dict(device="tpu"), "device 'tpu' is unknown; choose cpu or cuda"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_measured(options, message):
    with pytest.raises(ValueError, match=message):
        convattn.benchmark(options.pop("models", ["smt_nano"]), **{**QUICK, **options})
