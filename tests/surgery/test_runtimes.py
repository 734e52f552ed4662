"""Changed models where they are trained and run: several processes, torch's compiler, ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.surgery.attachment import Attachment
from forked_runs import ForkedProgram
from toys import randomise_norms, relative_error


def resnet(name="test_resnet"):
    model = timm.create_model(name, num_classes=3)
    randomise_norms(model)
    return model.eval()


def shaken(model):
    """Every inserted weight away from its start, so that a block that does not run shows."""
    for module in model.modules():
        if isinstance(module, Attachment):
            for parameter in module.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    randomise_norms(model)
    return model.eval()


# One of two processes: half of the batch, gradients averaged by torch; the first writes down what it got.
PROCESS = """
import sys
import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
model, images, labels = torch.load(f"{folder}/start.pt", weights_only=False)
parallel = DistributedDataParallel(model)
half = slice(2 * rank, 2 * rank + 2)
cross_entropy(parallel(images[half]), labels[half]).backward()
if rank == 0:
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{folder}/gradients.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_give_the_gradients_of_one(tmp_path):
    model = convattn.attach(resnet(), "das", where=["layer3", "layer4"])
    model = shaken(convattn.attach(model, "cot", where=["layer2"])).double()  # evaluated: no norm sees the batch
    images, labels = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    torch.save((model, images, labels), tmp_path / "start.pt")
    processes = [ForkedProgram(PROCESS, tmp_path, rank) for rank in (0, 1)]
    for process in processes:
        done = process.join()
        assert done.returncode == 0, done.stderr
    nn.functional.cross_entropy(model(images), labels).backward()
    got = torch.load(tmp_path / "gradients.pt")
    assert {name for name in got if ".attached." in name}
    for name, parameter in model.named_parameters():
        assert relative_error(got[name], parameter.grad) < 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["attach", "replace"])
def test_compiled_forward_and_backward(operation):
    model = resnet()
    changed = shaken(
        convattn.attach(model, "das")
        if operation == "attach"
        else convattn.replace(
            model, "cot", match=lambda name, conv: name.startswith("layer4") and conv.stride == (1, 1)
        )
    )
    assert changed.surgery
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    want = changed(images)
    (want_gradient,) = torch.autograd.grad(want.square().sum(), images)
    got = torch.compile(changed, fullgraph=True)(images)
    (gradient,) = torch.autograd.grad(got.square().sum(), images)
    assert relative_error(got, want) < 1e-4
    assert relative_error(gradient, want_gradient) < 1e-3


@pytest.mark.parametrize(
    ("name", "mixer", "options"),
    [
        ("test_resnet", "se", {}),
        pytest.param("resnet18", "das", {}, marks=pytest.mark.slow),
        pytest.param("resnet18", "cot", {}, marks=pytest.mark.slow),
        pytest.param("resnet18", "gma", {"inner_dim": 80}, marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_gives_the_models_numbers(name, mixer, options, tmp_path):
    model = resnet(name)
    changed = shaken(convattn.attach(model, mixer, **options))
    report = convattn.export(changed, tmp_path / "changed.onnx", input_size=(64, 64))
    assert report.max_relative_error < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "changed.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    (got,) = session.run(None, {session.get_inputs()[0].name: images})
    with torch.no_grad():
        want = changed(torch.from_numpy(images))
        assert relative_error(torch.from_numpy(got), want) < 1e-4
        assert relative_error(model(torch.from_numpy(images)), want) > 1e-3
