"""`torch.compile` set up so that a compiled model is faster than the same model in eager mode, on a CPU too.

By default Inductor takes weights for something that may change: linear layers then go to the plain matrix product of
the BLAS library and convolutions reorder their weight at every call, as in eager mode. With its `freezing` set (it is
read from the global configuration only; `torch.compile(options=...)` has no effect on it) weights become constants.
Convolutions then go to oneDNN with packed weights and with the activations and additions behind them; but linear layers
in float32 go to MKL, which takes in no activation and is slower at the shapes of these networks. So linear layers over
maps are compiled as the 1×1 convolutions that they are.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convattn.ops.linear import Linear2d
from convattn.walk import copied, exchange

__all__ = ["compiled"]


def compiled(model: nn.Module, images: Tensor) -> Callable[[Tensor], object]:
    """A function that runs `model` compiled for the machine that `images` are on.

    Same outputs but for rounding. On a CPU it holds the weights once more, packed, and later changes of `model` do not
    reach it.

    Args:
        model: usually `fuse(model)`; on the device and in the type of `images`. It is left as it is.
        images: an input like those to come (B, C, H, W), on which it is compiled. Other shapes compile anew when they
            come.

    Returns:
        images -> what `model` returns, without gradients.
    """
    from torch._inductor import config  # takes a second, which only compiling is worth

    on_cpu = images.device.type == "cpu"
    network = torch.compile(_as_function(exchange(copied(model), _as_convolution) if on_cpu else model), dynamic=False)

    def run(images: Tensor) -> object:
        with config.patch(freezing=on_cpu), torch.inference_mode():
            return network(images)

    run(images)
    return run


def _as_function(model: nn.Module) -> Callable[[Tensor], object]:
    """A function with a code object of its own, by which torch finds what it compiled.

    Networks of one class share their `forward`: what somebody compiled without freezing for one of them would be found
    and used for all.
    """

    def forward(images: Tensor) -> object:
        return model(images)

    forward.__code__ = forward.__code__.replace()
    return forward


def _as_convolution(name: str, module: nn.Module) -> nn.Module | None:
    return module.graph_form() if type(module) is Linear2d else None
