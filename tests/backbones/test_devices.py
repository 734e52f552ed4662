"""What a GPU would refuse, found without one: tensors left on the CPU, and types that clash.

Parameters and images are fake ones on a CUDA device: operations give shapes, types and devices, and compute nothing.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import convattn
from convattn.classification.options import ClassificationOptions
from convattn.classification.task import Classification
from convattn.task import Batch
from toys import family_file, relative_error, shallow_toy, toy, toy_images

# The first model of each family, and what is attached to its stages.
_MIXERS = {
    "cotnet": "das",
    "das": "cot",
    "das_mobilenet": "se",
    "groupmixformer": "das",
    "hybrid": "triplet",
    "next_vit": "das",
    "smt": "cot",
}
MODELS = {family_file(name): name for name in reversed(convattn.list_models())}
every_family = pytest.mark.parametrize("family", MODELS)


def attached(family: str) -> nn.Module:
    """A toy of one block a stage with blocks attached; its own layers run in it as they do without."""
    return convattn.attach(shallow_toy(MODELS[family]), _MIXERS[family], where="stages", init="paper")


def on_cuda(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model` with fake parameters and buffers on a GPU; whatever else it holds stays where it is."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    fake = torch.empty(tensor.shape, device="cuda", dtype=kind)
                    tensors[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
    return model


def loss_and_output(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of a training step's forward pass with smoothed labels."""
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    task = Classification(7, ClassificationOptions(label_smoothing=0.1))
    loss = task.losses(model, Batch(images, labels, ["a", "b"]))["labels"]
    handle.remove()
    return loss, seen[0]


@pytest.mark.parametrize("form", ["attached", "fused"])
@every_family
def test_forward_and_loss_stay_on_a_gpu_in_every_precision(family, form):
    model = attached(family)
    model = model.train() if form == "attached" else convattn.fuse(model)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        again = copy.deepcopy(model)
        with FakeTensorMode():
            images = torch.empty(2, 3, *toy(MODELS[family]).image_size, device="cuda", dtype=dtype)
            loss, output = loss_and_output(on_cuda(again, dtype), images)
        assert (output.device.type, output.dtype) == ("cuda", dtype)
        assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)


@every_family
def test_every_form_runs_under_autocast(family):
    model, images = attached(family), toy_images(MODELS[family])
    for form in (model, convattn.fuse(model)):
        with torch.no_grad():
            _, wanted = loss_and_output(form, images)
            for dtype in (torch.bfloat16, torch.float16):
                with torch.autocast("cpu", dtype):
                    loss, output = loss_and_output(form, images)
                assert loss.dtype == torch.float32 and loss.isfinite()
                assert relative_error(output, wanted) < 0.1


def test_a_tensor_left_on_the_cpu_is_found():
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 7)
            self.offset = torch.ones(7)  # no buffer: it does not move with the model

        def forward(self, x):
            return self.fc(x.mean((2, 3))) + self.offset

    model = Forgetful()
    loss_and_output(model, torch.rand(2, 3, 4, 4))
    with FakeTensorMode(), pytest.raises((AssertionError, RuntimeError)):
        loss_and_output(on_cuda(model, torch.float32), torch.empty(2, 3, 4, 4, device="cuda"))
