"""The papers' ablation tables by name, one file a family."""

from convattn.ablation.design import Comparison
from convattn.ablation.presets import cotnet, das, groupmixformer, nextvit, smt
from convattn.nearest import UnknownName, nearest

__all__ = ["PRESETS", "preset"]

PRESETS: dict[str, Comparison] = {
    name: comparison
    for module in (smt, groupmixformer, nextvit, cotnet, das)
    for name, comparison in module.PRESETS.items()
}


def preset(name: str) -> Comparison:
    """A paper's table; UnknownName names the nearest."""
    if name not in PRESETS:
        raise UnknownName(f"unknown preset {name!r}; {nearest(name, PRESETS)}; convattn ablate --list shows all")
    return PRESETS[name]
