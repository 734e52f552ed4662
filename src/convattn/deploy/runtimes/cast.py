"""A model that computes in 16 bits between float32 images and outputs, for formats that store it as it computes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convattn.deploy.runtimes.runtime import Precision
from convattn.walk import copied

__all__ = ["cast"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def cast(model: nn.Module, precision: Precision) -> nn.Module:
    """`model` itself for fp32; else a copy with weights and arithmetic of that precision, float32 at its ends."""
    dtype = _DTYPES.get(precision)
    return model if dtype is None else _Cast(copied(model).to(dtype), dtype)


class _Cast(nn.Module):
    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Tensor | list[Tensor] | dict[str, Tensor]:
        outputs = self.model(images.to(self.dtype))
        if isinstance(outputs, Mapping):
            return {name: output.float() for name, output in outputs.items()}
        return outputs.float() if isinstance(outputs, Tensor) else [output.float() for output in outputs]
