"""Bring a model into its inference form, write it as ONNX, and read the proof that the numbers survived."""

import torch

import convattn

model = convattn.create_model("smt_nano", num_classes=10).eval()
fused = convattn.fuse(model)
images = torch.randn(4, 3, 32, 32)
with torch.inference_mode():
    difference = (fused(images) - model(images)).abs().max() / model(images).abs().max()
print(f"fused: {len(fused.fusion_report)} parts, relative difference {difference:.1e}")

report = convattn.export(model, "smt_nano.onnx", input_size=(32, 32))
for check in report.checks:
    print(f"ONNX Runtime at {check.input_shape}: relative difference {check.relative_error:.1e}")
