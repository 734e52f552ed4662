"""Names of Next-ViT's modules in the authors' files (github.com/bytedance/Next-ViT).

Ours are those of timm's Next-ViT, so its files need no map. The authors count the blocks through all stages.
"""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from convattn.weights.rename import NameMap

__all__ = ["nextvit_names"]

_BLOCK = "stages.{i}.blocks.{j}"
_SAME = (
    "patch_embed.conv",
    "patch_embed.norm",
    "mhca.group_conv3x3",
    "mhca.norm",
    "mhca.projection",
    "norm",
    "norm1",
    "norm2",
    "e_mhsa.q",
    "e_mhsa.k",
    "e_mhsa.v",
    "e_mhsa.proj",
    "e_mhsa.norm",
    "projection.conv",
    "projection.norm",
)
_MODULES = {
    "stem.{i}.conv": "stem.{i}.conv",
    "stem.{i}.norm": "stem.{i}.norm",
    **{f"{_BLOCK}.{name}": f"{_BLOCK}.{name}" for name in _SAME},
    f"{_BLOCK}.mlp.fc1": f"{_BLOCK}.mlp.conv1",
    f"{_BLOCK}.mlp.fc2": f"{_BLOCK}.mlp.conv2",
    "head.fc": "proj_head.0",
}
# With extra norms the classifier's norm stands behind the last stage, and a fourth extra norm is never used.
_EXTRA_NORMS = {f"stages.{i}.norm": f"extra_norm_list.{i}" for i in range(3)} | {"stages.3.norm": "norm"}


@dataclass(frozen=True)
class _CountedThrough(NameMap):
    """A map whose authors write `features.{n}` for `stages.{i}.blocks.{j}`, n counted over all stages."""

    depths: tuple[int, ...] = ()

    def to_ours(self, name: str) -> str | None:
        counted = re.fullmatch(r"features\.(\d+)\.(.+)", name)
        if not counted:
            return None if name.startswith("stages.") else super().to_ours(name)
        block = int(counted[1])
        for stage, depth in enumerate(self.depths):
            if block < depth:
                return super().to_ours(f"stages.{stage}.blocks.{block}.{counted[2]}")
            block -= depth
        return None

    def to_theirs(self, name: str) -> str | None:
        theirs = super().to_theirs(name)
        in_stage = re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", theirs or "")
        if not in_stage:
            return theirs
        return f"features.{sum(self.depths[: int(in_stage[1])]) + int(in_stage[2])}.{in_stage[3]}"


def nextvit_names(model: nn.Module) -> NameMap:
    """The map for a Next-ViT: it depends on the number of blocks in its stages and on the extra norms."""
    cfg: Any = model.cfg
    stages: Any = model.stages
    depths = tuple(len(stage.blocks) for stage in stages)
    if not cfg.extra_norm:
        return _CountedThrough(_MODULES | {"norm": "norm"}, depths=depths)
    width = stages[-1].norm.weight.shape[0]
    unused = nn.BatchNorm2d(width).state_dict(prefix="extra_norm_list.3.")
    return _CountedThrough(_MODULES | _EXTRA_NORMS, unused=unused, depths=depths)
