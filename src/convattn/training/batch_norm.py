"""Batch statistics over all processes: PyTorch's on GPUs, and an all-reduce that works on the CPU too."""

from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from convattn.training.config import ConfigError

__all__ = ["AllReduceBatchNorm2d", "synchronised"]


class AllReduceBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the batches of all processes, which are of one size.

    PyTorch's `SyncBatchNorm` is faster and refuses CPU tensors. (B, C, H, W) -> (B, C, H, W).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in evaluation as `nn.BatchNorm2d` does."""
        if not self.training:
            return super().forward(input)
        replicas = torch.distributed.get_world_size()
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        mean = _Sum.apply(x.mean((0, 2, 3))) / replicas
        centred = x - mean[:, None, None]  # first: E[x²] - E[x]² cancels where the mean is large
        variance = _Sum.apply(centred.square().mean((0, 2, 3))) / replicas
        with torch.no_grad():
            self._track(mean, variance, replicas * input.numel() // input.shape[1])
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        output = centred * scale[:, None, None]
        return (output + self.bias[:, None, None] if self.affine else output).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)


class _Sum(torch.autograd.Function):
    """The sum over all processes; each process's loss is taken as a part of one sum, so gradients add up too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Sum `values`."""
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradient."""
        return _Sum.forward(ctx, gradients[0])


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with every batch norm synchronised; names of parameters and buffers stay.

    Raises:
        ConfigError: on the CPU, for a batch norm of another kind than `nn.BatchNorm2d`.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = AllReduceBatchNorm2d
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(f"loop.sync_batch_norm on the CPU: {name} is {type(module).__name__}, not BatchNorm2d")
    return model
