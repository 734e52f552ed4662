"""Names of detectors' heads in the files of mmdetection and detectron2.

Ours are those of mmdetection 2 and 3. Files of mmdetection 1 are brought to them by `MMDETECTION_1`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from convattn.weights.rename import NameMap, Older

__all__ = ["DETECTRON2_NECK_NAMES", "DETECTRON2_REGION_NAMES", "MMDETECTION_1", "NO_WEIGHTS"]

_LEVELS = range(4)  # of strides 4 to 32, which detectron2 numbers 2 to 5

# Behind `neck.` and `backbone.`.
DETECTRON2_NECK_NAMES = NameMap(
    {
        f"{ours}.{level}.{part}": f"{theirs}{level + 2}{norm}"
        for ours, theirs in (("lateral_convs", "fpn_lateral"), ("fpn_convs", "fpn_output"))
        for level in _LEVELS
        for part, norm in (("conv", ""), ("bn", ".norm"))
    }
)


def _box_head(stage: str) -> dict[str, str]:
    """Rows of a stage, which stands behind the part's name: nothing, or a number."""
    return {
        f"bbox_head{stage}.shared_convs.{{i}}.conv": f"box_head{stage}.conv{{i+1}}",
        f"bbox_head{stage}.shared_convs.{{i}}.bn": f"box_head{stage}.conv{{i+1}}.norm",
        f"bbox_head{stage}.shared_fcs.{{i}}": f"box_head{stage}.fc{{i+1}}",
        f"bbox_head{stage}.fc_cls": f"box_predictor{stage}.cls_score",
        f"bbox_head{stage}.fc_reg": f"box_predictor{stage}.bbox_pred",
    }


# Behind `rpn_head.` and `proposal_generator.rpn_head.`; behind `roi_head.` and `roi_heads.`.
DETECTRON2_REGION_NAMES = NameMap(
    {
        "rpn_conv": "conv",
        "rpn_cls": "objectness_logits",
        "rpn_reg": "anchor_deltas",
        **_box_head(""),
        **_box_head(".{k}"),
        "mask_head.convs.{i}.conv": "mask_head.mask_fcn{i+1}",
        "mask_head.convs.{i}.bn": "mask_head.mask_fcn{i+1}.norm",
        "mask_head.upsample": "mask_head.deconv",
        "mask_head.conv_logits": "mask_head.predictor",
    }
)

# What some files hold beside weights: how images were normalised, and anchors, which are computed.
NO_WEIGHTS = (
    "pixel_mean",
    "pixel_std",
    "data_preprocessor.mean",
    "data_preprocessor.std",
    "proposal_generator.anchor_generator.cell_anchors.",
)


def _is_mmdetection_1(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a detector in two stages from a version of mmdetection below 2."""
    two_stages = any(name.startswith("rpn_head.") for name in state)
    return two_stages and any(name.startswith("bbox_head.") for name in state)


def _from_mmdetection_1(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a detector in two stages as later versions have it.

    Heads of regions stand behind `roi_head.`; background is the last class instead of the first; boxes and masks have
    no part for it.
    """
    classes = {name.rsplit(".", 2)[0]: len(tensor) for name, tensor in state.items() if name.endswith("fc_cls.weight")}
    found = {}
    for name, tensor in state.items():
        head, layer = [*name.rsplit(".", 2), ""][:2]
        if layer == "fc_cls":
            tensor = torch.roll(tensor, -1, 0)
        elif layer == "fc_reg" and len(tensor) == 4 * classes.get(head, 0):
            tensor = tensor[4:]
        elif layer == "conv_logits" and len(tensor) == max(classes.values(), default=0):
            tensor = tensor[1:]
        is_region = name.startswith(("bbox_head.", "mask_head."))
        found[f"roi_head.{name}" if is_region else name] = tensor
    return found


MMDETECTION_1 = Older(
    "mmdetection 1",
    "whose background is the first class: moved behind the others",
    _is_mmdetection_1,
    _from_mmdetection_1,
)
