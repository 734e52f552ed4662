"""Recomputing activations in backward, by which the statistics of batch norms do not move a second time.

A block under gradient checkpointing runs twice a step: in the forward pass, and again in backward. What it measures
about the batch is measured in the first of them; the second works on copies that are thrown away.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Recomputed", "recompute", "statistics", "statistics_held"]


class Recomputed(nn.Sequential):
    """A sequence whose members are recomputed in backward, in training."""

    stands_for = nn.Sequential  # in evaluation, and so in a model file

    def forward(self, input: Tensor) -> Tensor:
        """Run the members one after the other."""
        return recompute(self, input) if self.training else super().forward(input)


def recompute(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run the blocks one after the other; in backward each runs again instead of keeping its activations."""
    for block in blocks:
        if torch.compiler.is_compiling():  # takes no contexts, and writes to buffers once whatever is recomputed
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
    return x


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of this very module that hold what it has measured about batches: those of a batch norm, by name."""
    measures = any(name.startswith("running_") for name in module._buffers)
    return {name: value for name, value in module._buffers.items() if measures and value is not None}


@contextmanager
def statistics_held(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While this lasts, the modules measure into copies of their statistics."""
    kept = [(module, held) for module in modules if module.training and (held := statistics(module))]
    try:
        for module, held in kept:
            module._buffers.update({name: value.clone() for name, value in held.items()})
        yield
    finally:
        for module, held in kept:
            module._buffers.update(held)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Of the forward pass, and of that in backward."""
    return nullcontext(), statistics_held(block.modules())
