"""A variant of each family at full size through every form that inference takes; `-s` shows the errors as a table."""

import pytest
import torch

import convattn
from toys import lively, randomise_norms, relative_error

pytestmark = pytest.mark.slow

# Weights of unit scale, where every branch counts, let rounding of float32 grow with depth: Next-ViT-S reaches 2e-4.
TOLERANCE = 1e-3


@pytest.mark.parametrize("name", ["smt_tiny", "groupmixformer_tiny", "nextvit_small", "cotnet_50", "resnet50_das"])
def test_every_form_gives_the_models_numbers(name, tmp_path):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = lively(convattn.create_model(name)).eval()
    images = torch.randn(2, 3, 64, 96)
    # With gradients: without them linear layers take another kernel than a graph.
    compiled = relative_error(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))
    exported = [
        convattn.export(model, tmp_path / f"model{suffix}", input_size=(64, 96), tolerance=TOLERANCE).max_relative_error
        for suffix in (".pt2", ".onnx")
    ]
    randomise_norms(model)
    model, images = model.double(), images.double()
    with torch.inference_mode():
        fused = relative_error(convattn.fuse(model)(images), model(images))
    print(f"\n| {name} | {compiled:.1e} | {exported[0]:.1e} | {exported[1]:.1e} | {fused:.1e} |", flush=True)
    assert compiled == 0
    assert fused < 1e-9
