"""Every runtime of a benchmark gives the model's numbers, or says why it cannot."""

import pytest
import torch

import convattn
from convattn.bench.runtimes import (
    PYTORCH,
    Setting,
    Unavailable,
    check_runtime,
    file_call,
    pytorch_calls,
    write_file,
)
from toys import build_toy, relative_error

SMALL = Setting(batch_size=2, image_size=32)


@pytest.mark.parametrize(
    "runtime", [pytest.param(name, marks=pytest.mark.slow) if name == "compile" else name for name in PYTORCH]
)
def test_pytorchs_runtimes_give_the_models_numbers(runtime):
    model = build_toy("smt_nano")
    calls = pytorch_calls(model, runtime, SMALL)
    assert list(calls) == (["contiguous", "channels_last"] if runtime == "eager" else ["channels_last"])
    with torch.inference_mode():
        want = model(SMALL.images())
    for call in calls.values():
        assert relative_error(call(), want) < 1e-5


@pytest.mark.parametrize("runtime", ["torch_export", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_a_file_gives_the_models_numbers(runtime, tmp_path):
    model = build_toy("smt_nano")
    call = file_call(write_file(model, runtime, SMALL, tmp_path), runtime, SMALL)
    with torch.inference_mode():
        assert relative_error(call()[0], model(SMALL.images())) < 1e-5


def test_bf16_is_bf16():
    (call,) = pytorch_calls(build_toy("smt_nano"), "fused", Setting("bf16", image_size=32)).values()
    assert call().dtype is torch.bfloat16


def test_what_does_not_exist_says_why(tmp_path):
    with pytest.raises(Unavailable, match="nothing to fuse"):
        pytorch_calls(convattn.create_model("timm:test_vit", num_classes=3).eval(), "fused", Setting(image_size=160))
    with pytest.raises(Unavailable, match="PyTorch runs fp32 and bf16 on cpu, not int8"):
        pytorch_calls(build_toy("smt_nano"), "eager", Setting("int8"))
    with pytest.raises(Unavailable, match="onnx files are written in fp32, not bf16"):
        write_file(build_toy("smt_nano"), "onnxruntime", Setting("bf16", image_size=32), tmp_path)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="runtime 'onnxruntme' is unknown; nearest: onnxruntime"):
        check_runtime("onnxruntme")
    with pytest.raises(ValueError, match="precision 'fp8' is unknown; choose among fp32, bf16, fp16, int8"):
        Setting("fp8")
