"""Batch statistics that are those of the images: over all processes, measured once a step, and never of a blank image.

Over all processes: PyTorch's on GPUs, and an all-reduce that works on the CPU too.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from convattn.backbones.recompute import statistics, statistics_held
from convattn.training.config import ConfigError

__all__ = ["AllReduceBatchNorm2d", "KeptStatistics", "measure_once", "measures_nothing", "synchronised"]


class AllReduceBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the batches of all processes; one of them may be empty.

    PyTorch's `SyncBatchNorm` is faster and refuses CPU tensors. (B, C, H, W) -> (B, C, H, W).
    """

    stands_for = nn.BatchNorm2d  # in evaluation, and so in a model file

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in evaluation as `nn.BatchNorm2d` does."""
        if not self.training:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        size = x.new_full((1,), x.numel() // x.shape[1])
        total, images = _Sum.apply(torch.cat([x.sum((0, 2, 3)), size])).split([x.shape[1], 1])
        count = images.clamp(min=1)  # no process may have an image
        mean = total / count
        centred = x - mean[:, None, None]  # first: E[x²] - E[x]² cancels where the mean is large
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self._track(mean, variance, images)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        output = centred * scale[:, None, None]
        return (output + self.bias[:, None, None] if self.affine else output).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, images: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        measured = images.clamp(max=1)[0]  # 0 where no process has an image: nothing moves
        self.num_batches_tracked += measured.to(torch.int64)
        average = 1 / self.num_batches_tracked.clamp(min=1).to(mean)
        momentum = measured * (average if self.momentum is None else self.momentum)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (images / (images - 1).clamp(min=1)), momentum)


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

    ConfigError on the CPU for a batch norm of another kind than `nn.BatchNorm2d`.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = AllReduceBatchNorm2d
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(f"loop.sync_batch_norm on the CPU: {name} is {type(module).__name__}, not BatchNorm2d")
    return model


def measure_once(model: nn.Module) -> None:
    """Let no batch norm of `model` measure a batch again where gradient checkpointing runs it again in backward.

    Models that see to it themselves (`measures_once`) stay as they are. Of others, such as timm's, nobody tells which
    parts are recomputed, so each norm finds out for itself.
    """
    if getattr(model, "measures_once", False):
        return
    for module in model.modules():
        if statistics(module):
            module.register_forward_pre_hook(_hold)
            module.register_forward_hook(_release, always_call=True)


def _hold(module: nn.Module, inputs: Any) -> None:
    # A forward pass within a backward pass is a second one.
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        held = vars(module)["_held"] = ExitStack()
        held.enter_context(statistics_held([module]))


def _release(module: nn.Module, inputs: Any, output: Any) -> None:
    held = vars(module).pop("_held", None)
    if held is not None:
        held.close()


@contextmanager
def measures_nothing(model: nn.Module) -> Iterator[None]:
    """While this lasts, what goes through `model` counts in no batch statistics, neither here nor in other processes.

    Synchronised norms take part in the exchange with a batch of no images, and hand on what they were given.
    """
    synchronised_norms = [m for m in model.modules() if isinstance(m, AllReduceBatchNorm2d | nn.SyncBatchNorm)]
    others = [module for module in model.modules() if module not in set(synchronised_norms)]
    with ExitStack() as stack:
        stack.enter_context(statistics_held(others))
        for norm in synchronised_norms:
            given: list[Tensor] = []

            def empty(module: nn.Module, inputs: Any, given: list[Tensor] = given) -> tuple:
                given.append(inputs[0])
                return (inputs[0][:0], *inputs[1:])

            def hand_on(module: nn.Module, inputs: Any, output: Tensor, given: list[Tensor] = given) -> Tensor:
                return given.pop() + 0 * output.sum()  # which keeps the norm's weights in the graph

            stack.callback(norm.register_forward_pre_hook(empty).remove)
            stack.callback(norm.register_forward_hook(hand_on).remove)
        yield


class KeptStatistics:
    """A copy of the batch statistics of a model, to go back to where an update is skipped.

    Args:
        model: its buffers stay the same tensors from here on.
    """

    def __init__(self, model: nn.Module):
        named = [entry for module in model.modules() for entry in statistics(module).items()]
        tensors = list({id(value): value for _, value in named}.values())
        kinds = {value.dtype for value in tensors}
        self._groups = [[value for value in tensors if value.dtype == kind] for kind in kinds]  # copied at once
        self._kept = [[value.clone() for value in group] for group in self._groups]
        self._measured = [value for value in tensors if value.is_floating_point()]

    def keep(self) -> None:
        """Remember what they are now."""
        for kept, group in zip(self._kept, self._groups, strict=True):
            torch._foreach_copy_(kept, group)

    def put_back(self) -> None:
        """Make them what they were."""
        for kept, group in zip(self._kept, self._groups, strict=True):
            torch._foreach_copy_(group, kept)

    def largest(self) -> Tensor | None:
        """The largest absolute value of means and variances, on their device; None without any."""
        return torch.nn.utils.get_total_norm(self._measured, math.inf) if self._measured else None
