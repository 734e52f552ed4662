"""Looking into a network while it runs: what modules took and gave, and the network as it was afterwards."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Captured", "captures", "evaluated"]


@dataclass(frozen=True)
class Captured:
    """What was kept of a forward pass, by the names of the modules; of several calls the last."""

    outputs: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)


@contextmanager
def captures(
    model: nn.Module,
    outputs: Iterable[str] = (),
    inputs: Iterable[str] = (),
    keep: Callable[[str, Any], Any] | None = None,
) -> Iterator[Captured]:
    """While this lasts, `model` evaluates, and what the named modules give and take is kept whenever it runs.

    `keep` is called at once, in front of whatever runs next: an activation that works in place changes nothing of it.
    Hooks are gone and every module is in its own mode again afterwards, also after an error.

    Args:
        model: any model.
        outputs: dotted names of the modules whose output, a tensor, is kept.
        inputs: those whose first argument is kept.
        keep: name, tensor -> what is kept of it: a copy by default; of many or large maps, what is computed of them.

    Raises:
        ValueError: at the end, if one of them did not run.
    """
    kept, outputs, inputs, keep = Captured(), [*outputs], [*inputs], keep or _copy

    def keep_in(place: dict[str, Any], name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, *output: Any) -> None:
            place[name] = keep(name, output[0] if output else args[0])

        return hook

    with ExitStack() as stack:
        stack.enter_context(evaluated(model))
        for name in outputs:
            stack.callback(model.get_submodule(name).register_forward_hook(keep_in(kept.outputs, name)).remove)
        for name in inputs:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(keep_in(kept.inputs, name)).remove)
        yield kept
        idle = [name for name in outputs if name not in kept.outputs] + [n for n in inputs if n not in kept.inputs]
        if idle:
            raise ValueError(f"{idle[0]} does not run by itself in a forward pass; choose a module that does")


def _copy(name: str, value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while this lasts, the mode of every single module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
