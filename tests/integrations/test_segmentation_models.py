"""segmentation-models-pytorch takes our models as its `tu-` encoders."""

import pytest
import segmentation_models_pytorch as smp
import torch

import convattn  # registers the names that the encoders are looked up by  # noqa: F401


@pytest.mark.parametrize("architecture", [smp.UPerNet, smp.FPN])
def test_a_segmenter_trains_a_step(architecture):
    model = architecture("tu-smt_tiny", encoder_weights=None, classes=3).train()
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {key: parameter.detach().clone() for key, parameter in model.encoder.named_parameters()}
    logits = model(images)
    assert logits.shape == (2, 3, 64, 64)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    unmoved = [key for key, parameter in model.encoder.named_parameters() if torch.equal(parameter, before[key])]
    assert unmoved == []
