"""Weights laid out once for the CPU's kernels, instead of at every call.

PyTorch's eager mode hands oneDNN a weight in its ordinary layout, to be reordered each time it is used, and runs the
activation behind it as a pass of its own. A prepacked layer keeps the reordered weight and lets the kernel apply the
activation as it writes. It is the last step before running on a CPU; saving and exporting start from the fused model.
"""

from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from convattn.deploy.gate import worst_error
from convattn.ops.linear import Linear2d
from convattn.walk import copied, exchange, hung_on, names_of

__all__ = ["prepack"]

_ACTIVATIONS = {nn.ReLU: ("relu", None), nn.GELU: ("gelu", "none")}  # oneDNN's names: operation, algorithm


def prepack(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of `model` for running on this CPU: every linear layer and convolution holds its weight reordered.

    Same values but for rounding, which is checked on `images`. Where a ReLU or GELU follows directly in an
    `nn.Sequential`, it becomes part of the kernel. A layer with a hook or a parametrised weight stays as it is. The
    copy runs only: it has no state dict of the packed weights, is not trained and not exported.

    Args:
        model: usually `fuse(model)`; evaluated, on the CPU, float32 or bfloat16. It is left as it is.
        images: an input like those to come (B, C, H, W): oneDNN chooses the layout by the shapes it sees. Other shapes
            work too, at the price of a reordering.

    Raises:
        RuntimeError: if this build of PyTorch has no oneDNN.
        ValueError: if a weight is not on the CPU, or neither float32 nor bfloat16, the model is prepacked already, or
            the packed copy gives other numbers, as where a network reads the weight of a layer by itself.
    """
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("this build of PyTorch has no oneDNN, so there is nothing to pack for; use the fused model")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"{name} is {parameter.dtype} on {parameter.device}; prepack takes float32 or bfloat16 on the CPU"
            )
    packed = copied(model).eval().requires_grad_(False)
    shapes, want = _run(packed, images)
    packed = _packed(packed, shapes)
    _teach_counter()
    rounds_coarsely = any(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
    _check(packed, images, want, 0.1 if rounds_coarsely else 1e-3)
    return packed


def _run(model: nn.Module, images: Tensor) -> tuple[dict[nn.Module, torch.Size], Any]:
    """The shape that each packable layer and each sequence sees when `model` runs on `images`, and what it gives.

    Those that do not run are left out.
    """
    shapes: dict[nn.Module, torch.Size] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes[module] = getattr(inputs[0], "shape", torch.Size())

    wanted = [module for module in model.modules() if _is_packable(module) or _is_sequence(module)]
    hooks = [module.register_forward_pre_hook(record) for module in wanted]
    with torch.inference_mode():
        outputs = model(images)
    for hook in hooks:
        hook.remove()
    return shapes, outputs


def _packed(model: nn.Module, shapes: dict[nn.Module, torch.Size]) -> nn.Module:
    """The model with its layers packed, in place."""
    names = names_of(model)
    activations: dict[nn.Module, nn.Module] = {}  # of a layer that stands in one place alone
    for parent in model.modules():
        if _is_sequence(parent) and parent in shapes:  # as a whole, and not a part of it by somebody's loop
            for (_, layer), (key, follower) in pairwise([*parent._modules.items()]):
                if layer in shapes and len(names[layer]) == 1 and follower is not None and _kernel_of(follower):
                    activations[layer] = follower
                    parent._modules[key] = nn.Identity()

    def form_of(name: str, layer: nn.Module) -> nn.Module | None:
        if layer not in shapes or not _is_packable(layer):
            return None
        kernel = _kernel_of(activations[layer]) if layer in activations else None
        return _pack(layer, shapes[layer], kernel or ("none", None))

    return exchange(model, form_of)


def _check(packed: nn.Module, images: Tensor, want: Any, tolerance: float) -> None:
    """Raises ValueError if the packed model gives other numbers."""
    try:
        with torch.inference_mode():
            worst = worst_error(packed(images), want)
        found = f"gives other numbers (relative error {worst:.1e})" if worst > tolerance else ""
    except Exception as error:  # whatever a network of somebody's makes of a layer that is another
        found = f"does not run ({' '.join(str(error).split())[:160]})"
    if found:
        raise ValueError(
            f"packed for these images, the model {found}: it uses a layer otherwise than by calling it; "
            "run the fused model instead"
        )


def _teach_counter() -> None:
    """Tell torch's `FlopCounterMode` what the kernels do; it would count 0 for those that it does not know."""
    formulas: dict[Any, Any] = {
        torch.ops.mkldnn._linear_pointwise: _linear_flops,
        torch.ops.mkldnn._convolution_pointwise: _convolution_flops,
    }
    for kernel, formula in formulas.items():
        if kernel not in flop_registry:
            register_flop_formula(kernel)(formula)


def _linear_flops(rows: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * rows.numel() * weight[0]


def _convolution_flops(images: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    return conv_flop_count(list(images), list(weight), list(out_shape))


def _is_sequence(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward and "forward" not in vars(module)


def _is_packable(module: nn.Module) -> bool:
    if hung_on(module):  # what hangs on a layer is part of what it computes
        return False
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, Linear2d)


def _kernel_of(activation: nn.Module) -> tuple[str, str | None] | None:
    """How oneDNN calls what a module computes, if it is an activation that a kernel can apply."""
    exact = type(activation) is not nn.GELU or activation.approximate == "none"
    return _ACTIVATIONS.get(type(activation)) if exact and not hung_on(activation) else None


def _pack(module: nn.Module, shape: torch.Size, activation: tuple[str, str | None]) -> nn.Module:
    if isinstance(module, Linear2d):
        return PackedLinear2d(module, shape, *activation)
    if isinstance(module, nn.Conv2d):
        return PackedConv2d(module, shape, *activation)
    assert isinstance(module, nn.Linear)
    return PackedLinear(module, shape[:-1].numel(), *activation)


class _Packed(nn.Module):
    """What holds a weight that only oneDNN can read."""

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise ValueError(
            "a prepacked model runs only; to copy, count, fuse, prepack or export, take the model that it was made from"
        )


class PackedLinear(_Packed):
    """activation(x Wᵀ + b) over the last dimension, by oneDNN with the weight reordered once for this many rows."""

    def __init__(self, linear: nn.Linear | Linear2d, rows: int, activation: str = "none", algorithm: str | None = None):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().flatten(1), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation, self.algorithm = activation, algorithm

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # what lies in front may have computed in another type, under autocast
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], self.algorithm)


class PackedLinear2d(PackedLinear):
    """The same over the channels of a map (B, C, H, W)."""

    def __init__(self, linear: Linear2d, shape: torch.Size, activation: str = "none", algorithm: str | None = None):
        batch, _, height, width = shape
        down, across = linear.stride
        positions = batch * -(-height // down) * -(-width // across)
        super().__init__(linear, positions, activation, algorithm)
        self.rows = linear.rows

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.rows(x)).permute(0, 3, 1, 2)


class PackedConv2d(_Packed):
    """activation(convolution), by oneDNN with the weight reordered once."""

    def __init__(self, conv: nn.Conv2d, shape: torch.Size, activation: str = "none", algorithm: str | None = None):
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            conv.weight.detach().to_mkldnn(), *self.geometry, list(shape)
        )
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.activation, self.algorithm = activation, algorithm

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.geometry, self.activation, [], self.algorithm
        )
