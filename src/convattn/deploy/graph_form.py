"""The form of a fused model that graph runtimes (ONNX Runtime, OpenVINO) run fastest.

PyTorch's eager mode is fastest where a 1×1 convolution is a matrix product over a channels-last map. Graph runtimes
keep maps in a layout of their own for as long as convolutions follow one another; a matrix product between them breaks
the chain, with a transposition on either side.
"""

from torch import nn

from convattn.walk import copied, exchange

__all__ = ["graph_form"]


def graph_form(model: nn.Module) -> nn.Module:
    """A copy of `model`, usually fused, for export to a graph runtime: same outputs, in the operations those do best.

    Whatever a block knows better than its eager form, it offers as `graph_form()`; what it returns is taken as it is,
    and blocks that offer nothing are searched. A block with a hook in it stays. Exact but for rounding.
    """
    return exchange(copied(model), _offered).eval()


def _offered(name: str, block: nn.Module) -> nn.Module | None:
    offer = getattr(block, "graph_form", None)
    return offer() if callable(offer) else None
