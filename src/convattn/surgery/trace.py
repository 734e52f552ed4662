"""What runs in a model, in which order and with which shapes: one forward pass on shapes alone."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convattn.sizes import Size, input_shape, likely_shapes
from convattn.surgery.attentions import project_maps
from convattn.walk import probe

__all__ = ["Call", "find_grid", "greedy_containers", "trace"]


@dataclass(frozen=True)
class Call:
    """What one module did in a forward pass."""

    name: str  # dotted
    times: int  # how often it ran
    shape: tuple[int, ...]  # of its last output; empty if that is no tensor
    image_size: tuple[int, int]  # of the model's input
    usual_layout: str = "NCHW"  # what the model says of its maps, for shapes that do not tell
    grid: tuple[int, int] | None = None  # height and width of an output of tokens, where its arguments tell them

    @property
    def is_map(self) -> bool:
        """Whether the output is a map of positions: not pooled to one, and tokens only if their grid is known."""
        return self.grid is not None or (
            len(self.shape) == 4 and not (self.shape[1:3] == (1, 1) or self.shape[2:] == (1, 1))
        )

    @property
    def layout(self) -> str:
        """ "NCHW", "NHWC" where the aspect of the image is found in the middle dimensions only, or "tokens"."""
        if self.grid is not None:
            return "tokens"
        height, width = self.image_size
        if height == width and self.shape[1] == self.shape[2] == self.shape[3]:
            return self.usual_layout
        first, second = (_aspect_error(self.shape[at : at + 2], self.image_size) for at in (1, 2))
        return "NHWC" if first < second else "NCHW"

    @property
    def channels(self) -> int:
        """Width of the map."""
        return self.shape[1 if self.layout == "NCHW" else -1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map."""
        if self.grid is not None:
            return self.grid
        at = 1 if self.layout == "NHWC" else 2
        return self.shape[at], self.shape[at + 1]


def trace(model: nn.Module, input_size: Size | None = None) -> dict[str, Call]:
    """Run a copy of `model` on the meta device and record every module that returned, by its first name.

    Other people's hooks are not called. Projections inside the attentions that `surgery.attentions` knows are recorded
    as the maps they can give. Without `input_size` it is what the model says it takes, else the usual sizes are tried.

    Returns:
        Dotted name -> what the module did, in the order in which the modules returned.

    Raises:
        ValueError: if the model runs on none of the sizes.
    """
    return _run_at(probe(model), model, input_size)


def _run_at(network: nn.Module, model: nn.Module, input_size: Size | None) -> dict[str, Call]:
    project_maps(network)
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    tried = [input_shape(model, input_size)] if input_size is not None else _sizes(model)
    failure = ""
    for size in tried:
        try:
            return _run(network, torch.empty(1, *size, dtype=dtype, device="meta"))
        except (RuntimeError, ValueError, AssertionError, TypeError, NotImplementedError) as error:
            failure = failure or " ".join(str(error).split())[:160]
    sizes = ", ".join(" x ".join(map(str, size)) for size in tried)
    raise ValueError(
        f"{type(model).__name__} does not run on an image of {sizes} ({failure}); "
        "give input_size: a side, (height, width) or (channels, height, width)"
    )


class _Spy(nn.Module):
    """Stands where a block would, and hands on what it is called with."""

    is_called = False
    handed_on: Any = None

    def forward(self, *inputs: Any) -> Any:
        self.is_called, self.handed_on = True, inputs[0] if inputs else None
        return self.handed_on


def greedy_containers(model: nn.Module, names: Sequence[str], input_size: Size | None = None) -> list[str]:
    """Those of the named modules that compute with whatever is registered in them, as a DenseNet's blocks do.

    Containers that call their children in turn only hand a value on through one more.
    """
    suspected = [name for name in names if _may_run_its_children(model.get_submodule(name))]
    while True:
        network = probe(model)
        spies = {name: _Spy() for name in suspected}
        outputs: dict[str, Any] = {}
        for name, spy in spies.items():
            place = network.get_submodule(name)
            place.add_module("attached", spy)
            place.register_forward_hook(_remember(outputs, name), prepend=True)
        if spies:
            with suppress(ValueError):  # one of them may stop the network
                _run_at(network, model, input_size)
        greedy = [name for name, spy in spies.items() if spy.is_called and outputs.get(name, spy) is not spy.handed_on]
        if not greedy:
            return [
                name for name in names if name not in suspected and _may_run_its_children(model.get_submodule(name))
            ]
        suspected = [name for name in suspected if name not in greedy]


def _may_run_its_children(module: nn.Module) -> bool:
    """Whether its forward goes through its children, other than as a plain sequence does."""
    forward = type(module).forward
    if forward is nn.Sequential.forward:
        return False
    used = getattr(getattr(forward, "__code__", None), "co_names", ())
    is_container = isinstance(module, nn.Sequential | nn.ModuleDict | nn.ModuleList)
    return is_container or not {"children", "named_children", "_modules"}.isdisjoint(used)


def _remember(outputs: dict[str, Any], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = output

    return hook


def find_grid(inputs: Any) -> tuple[int, int] | None:
    """Height and width among the arguments of a module of tokens, as PVT's blocks get them."""
    pairs = (value for value in inputs if isinstance(value, tuple | list) and len(value) == 2)
    return next(((pair[0], pair[1]) for pair in pairs if not isinstance(pair[0], Tensor)), None)


def _run(network: nn.Module, images: Tensor) -> dict[str, Call]:
    names = {module: name for name, module in network.named_modules()}
    image_size = (images.shape[2], images.shape[3])
    usual_layout = str(getattr(network, "output_fmt", "NCHW")).rpartition(".")[2]  # timm's word, or its enum
    calls: dict[str, Call] = {}

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        name = names[module]
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        before = calls.pop(name, None)  # taken out, so that it comes back at the end
        grid = find_grid(inputs) if len(shape) == 3 else None
        if grid is not None and grid[0] * grid[1] != shape[1]:
            grid = None
        calls[name] = Call(name, 1 + (before.times if before else 0), shape, image_size, usual_layout, grid)

    handles = [module.register_forward_hook(record) for module in names]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _sizes(model: nn.Module) -> list[tuple[int, ...]]:
    """What is tried in turn, a wide image first: its maps show which dimensions are positions."""
    first, *others = likely_shapes(model)
    channels, height, width = first
    fixed: Any = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm's networks for one size alone
    own = [] if fixed is None else [(channels, *fixed)]
    return [*own, (channels, height, width + width // 7 * 3), first, *others]


def _aspect_error(size: Sequence[int], image_size: tuple[int, int]) -> float:
    """How far the sides are from the image's aspect, over the rounding that strides allow."""
    return abs(size[0] / size[1] * image_size[1] / image_size[0] - 1)
