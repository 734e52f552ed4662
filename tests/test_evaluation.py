"""What a meter sees of a model's outputs."""

from typing import NamedTuple

import torch
from torch import nn

from convattn.evaluation import measure
from convattn.task import Batch


class Pair(NamedTuple):
    scores: torch.Tensor
    labels: torch.Tensor


class InLowerPrecision(nn.Module):
    def forward(self, images):
        scores = images.mean((1, 2, 3)).bfloat16()
        labels = torch.zeros(len(images), dtype=torch.int64)
        return {"all": [scores, (scores, labels)], "pair": Pair(scores, labels)}


class Keeping:
    def run(self, model, batch):
        return model(batch.images)

    def update(self, outputs, batch):
        self.outputs = outputs


def test_outputs_of_lower_precision_are_float32_wherever_they_stand():
    meter = Keeping()
    measure(InLowerPrecision(), [Batch(torch.ones(2, 3, 4, 4), torch.zeros(2), ["a", "b"])], meter)
    scores, (more, labels) = meter.outputs["all"]
    assert isinstance(meter.outputs["pair"], Pair)
    assert [scores.dtype, more.dtype, meter.outputs["pair"].scores.dtype] == [torch.float32] * 3
    assert labels.dtype == meter.outputs["pair"].labels.dtype == torch.int64
