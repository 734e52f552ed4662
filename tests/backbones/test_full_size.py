"""Every variant at its full size through every form that inference takes; `-s` shows the errors as a table."""

import copy

import pytest
import torch

import convattn
from toys import randomise_norms, relative_error

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", convattn.list_models())
def test_every_form_gives_the_models_numbers(name, tmp_path):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = convattn.create_model(name).eval()
    randomise_norms(model)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        wanted = model(images)
        compiled = relative_error(torch.compile(model, fullgraph=True, backend="eager")(images), wanted)
        double = copy.deepcopy(model).double()
        fused = relative_error(convattn.fuse(double)(images.double()), double(images.double()))
    exported = {
        suffix: convattn.export(model, tmp_path / f"model{suffix}", input_size=(64, 96)).max_relative_error
        for suffix in (".pt2", ".onnx")
    }
    row = (f"{error:.1e}" for error in (compiled, fused, *exported.values()))
    print(f"\n| {name} | {' | '.join(row)} |")
    assert compiled == 0
    assert fused < 1e-9
    assert all(error < 1e-3 for error in exported.values())
