"""Networks that blocks are attached to, and what tells that they run."""

import copy

import timm
import torch
from torch import nn

from convattn.surgery.attachment import Attachment
from toys import randomise_norms


class FourStages(nn.Module):
    """A network whose maps suit every mixer: 160 channels divide by 4, 5, 8, 16 and 32; 14 x 14 by 7."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 160, 3, 2, 1, bias=False), nn.BatchNorm2d(160), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(160, 160, 3, 1, 1, groups=160), nn.BatchNorm2d(160), nn.ReLU())
        self.fc = nn.Linear(160, 3)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def four_stages():
    model = FourStages()
    randomise_norms(model)
    return model.eval(), torch.randn(4, 3, 28, 28)


def resnet():
    model = timm.create_model("test_resnet", num_classes=3)
    randomise_norms(model)
    return model.eval(), torch.randn(2, 3, 64, 64)


def shaken(model):
    """Every inserted weight away from its start, so that a block that does not run shows."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Attachment):
            for parameter in module.parameters():
                parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def inserted(model):
    return {key for key in model.state_dict() if ".attached." in key}
