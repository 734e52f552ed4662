"""An inference form beside the block that it was made from, on the numbers that reach it.

A block makes its form of the layers that its class builds. Somebody may have put others in their place, or have derived
a class that computes more: no look at the block tells, but the numbers do.
"""

import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from convattn.deploy.gate import worst_error
from convattn.sizes import likely_shapes
from convattn.walk import copied, without_listeners

__all__ = ["Inputs", "disagreement", "inputs_of"]

Inputs = Mapping[str, tuple[Any, Any]]  # dotted name -> arguments by position and by name


def inputs_of(model: nn.Module, names: Collection[str]) -> Inputs:
    """What the modules of these names are called with on a small image of noise; of those that do not run nothing.

    The model is evaluated; nobody who listens to it hears of this.
    """
    found: dict[str, tuple[Any, Any]] = {}
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if not names or like is None or like.is_meta or type(like.data) is not Tensor:
        return found
    network = without_listeners(copied(model))
    for name in names:
        network.get_submodule(name).register_forward_pre_hook(partial(_note, found, name), with_kwargs=True)
    sizes = [*likely_shapes(model)]
    for size in ((sizes[0][0], 64, 64), *sizes):
        image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        try:
            with warnings.catch_warnings(action="ignore"), _plainly(like):
                network(image.to(like.device, like.dtype))
        except Exception:  # somebody else's code: whatever it raises, it does not run on this input
            found.clear()
            continue
        break
    return found


def disagreement(block: nn.Module, form: nn.Module, inputs: tuple[Any, Any] | None) -> str | None:
    """In what way `form` is unlike the evaluated `block`, for people; None if it is not, or without inputs.

    `inputs` is what `block` is called with, a value of `inputs_of`.
    """
    like = next(block.parameters(), None)
    if inputs is None or like is None:
        return None
    with _plainly(like):
        want = _run(block, inputs)
        try:
            worst = worst_error(_run(form, inputs), want)
        except Exception as error:
            return f"its inference form does not run ({' '.join(str(error).split())[:160]})"
    if worst <= (1e-3 if like.dtype in (torch.float32, torch.float64) else 0.1):
        return None
    return f"its inference form gives other numbers (relative error {worst:.1e}): it is not as its class builds it"


def _run(module: nn.Module, inputs: tuple[Any, Any]) -> Any:
    args, kwargs = tree_map_only(Tensor, Tensor.clone, inputs)  # some activations write where they read
    return module(*args, **kwargs)


def _note(found: dict[str, tuple[Any, Any]], name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    if name not in found:
        found[name] = tree_map_only(Tensor, Tensor.clone, (args, kwargs))


@contextmanager
def _plainly(like: Tensor) -> Iterator[None]:
    """Without autocast, and without compiling what is compiled for a single call."""
    could_compile = "torch._dynamo" in sys.modules  # it takes a second to import
    eager = torch.compiler.set_stance("force_eager") if could_compile else nullcontext()
    with torch.autocast(like.device.type, enabled=False), eager:
        yield
