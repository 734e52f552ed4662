"""Parts of a backbone that do not learn: what comes first in it, or its batch norms."""

from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convattn.backbones.levels import Level, modules_in_front

__all__ = ["freeze"]


def _check(backbone: nn.Module, levels: Sequence[Level], stages: int) -> None:
    if not 0 <= stages <= len(levels) + 1:
        raise ValueError(f"frozen_stages {stages} must be 0 to {len(levels) + 1}: the stem and {len(levels)} stages")
    for level in levels[: max(1, stages - 1)] if stages else ():
        if not level.module:
            raise ValueError(
                f"frozen_stages {stages}: the feature_info of {type(backbone).__name__} does not tell which module "
                f"gives its level of stride {level.stride}; leave it at 0 and freeze parameters yourself"
            )


def freeze(backbone: nn.Module, levels: Sequence[Level], stages: int = 0, norms: bool = False) -> None:
    """Keep parts of a backbone from learning, in place: without gradients, their norms and dropout evaluated.

    What attach and replace have put in learns all the same. `nn.Module.train` undoes the second half: freeze again.

    Args:
        backbone: whose modules are registered in the order in which they run.
        levels: of it, the finest first.
        stages: how many parts, from the front: 1 is the stem (all in front of the stage that gives the first level), 2
            that stage too, and so on.
        norms: batch norms keep their statistics, weights and biases wherever they are.

    Raises:
        ValueError: naming the number and how many parts there are, or what the backbone does not tell.
    """
    _check(backbone, levels, stages)
    modules = dict(backbone.named_modules())
    end = _end(backbone, levels, stages, modules) if stages else 0
    first, later = [*modules][:end], [*modules][end:]
    ours = tuple(f"{name}." for name, module in modules.items() if getattr(module, "is_inserted", False))
    around = {"", *(holder for name in later for holder in _holders(name))}  # of parts that learn
    for name in first:
        if not f"{name}.".startswith(ours):
            _still(modules[name], evaluated=name not in around)
    for module in modules.values():
        if norms and isinstance(module, _BatchNorm):
            _still(module)


def _still(module: nn.Module, *, evaluated: bool = True) -> None:
    """The parameters of a module itself without gradients, and the module evaluated."""
    if evaluated:
        module.training = False
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)


def _end(backbone: nn.Module, levels: Sequence[Level], stages: int, modules: Mapping[str, nn.Module]) -> int:
    """How many of the modules, in their order, are of the first so many parts."""
    if stages > 1:
        return _behind(levels[stages - 2].module, modules)
    finer = modules_in_front(backbone, levels[0])
    holders = _holders(levels[0].module)
    for row in (name for name in holders if isinstance(modules[name], nn.Sequential | nn.ModuleList)):
        inside = [name for name in finer if name.startswith(f"{row}.")]
        end = max((_behind(name, modules) for name in inside), default=[*modules].index(row))
        if any(True for name in [*modules][:end] for _ in modules[name].parameters(recurse=False)):
            return end
    return [*modules].index(levels[0].module)


def _behind(name: str, modules: Mapping[str, nn.Module]) -> int:
    """The place behind a module and all that it holds."""
    return 1 + max(at for at, other in enumerate(modules) if f"{other}.".startswith(f"{name}."))


def _holders(name: str) -> list[str]:
    """The modules around one, from the outermost, and itself."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
