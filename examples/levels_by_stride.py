"""Choose levels of a backbone by their stride, as a head of your own would."""

import torch

import convattn

WANTED = (8, 16)

strides = [info["reduction"] for info in convattn.create_model("smt_nano", num_classes=0).feature_info]
backbone = convattn.create_model(
    "smt_nano", features_only=True, out_indices=[strides.index(stride) for stride in WANTED]
).eval()

with torch.inference_mode():
    levels = backbone(torch.randn(1, 3, 96, 128))
for stride, channels, level in zip(WANTED, backbone.feature_info.channels(), levels, strict=True):
    print(f"stride {stride:2}: {channels} channels, {tuple(level.shape[2:])} positions")
