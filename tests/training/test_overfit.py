"""Every family learns 16 images with random labels by heart, to a loss of nearly nothing.

Whatever stands between loss and weights would show: an initialisation, a norm, a gate, the gradient of a kernel.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convattn
from convattn.classification.options import ClassificationOptions
from convattn.classification.task import Classification
from convattn.task import Batch

FAMILIES = {
    "smt_nano": {},
    "groupmixformer_nano": {},
    "nextvit_nano": {},
    "cotnet_nano": {},
    "resnet18_das_cifar": {"dims": (16, 32, 64, 128)},  # its blocks and gates, narrower
}


def pictures() -> Batch:
    """16 images of 16 pixels: blobs of colour with fine texture, normalised, each with one of ten labels at random."""
    generator = torch.Generator().manual_seed(0)
    blobs = F.interpolate(torch.randn(16, 3, 4, 4, generator=generator), size=16, mode="bicubic")
    texture = 0.3 * torch.randn(16, 3, 16, 16, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)
    return Batch((blobs + texture).to(memory_format=torch.channels_last), labels, [str(index) for index in range(16)])


@pytest.mark.parametrize("name", FAMILIES)
def test_16_images_are_learnt_by_heart(name):
    model: nn.Module = convattn.create_model(name, num_classes=10, **FAMILIES[name])
    model = model.train().to(memory_format=torch.channels_last)
    task, batch = Classification(10, ClassificationOptions()), pictures()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = sum(task.losses(model, batch).values())
        losses.append(loss.item())
        if losses[-1] < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert losses[0] > 2  # nothing is known at first: log 10 is 2.3
    assert losses[-1] < 0.01
