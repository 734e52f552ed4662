"""Small segmenters: a family's toy with heads of few channels."""

from typing import Any

from torch import Tensor, nn

import convattn
from convattn.segmentation.segmenter import Segmenter
from toys import randomise_norms, toy

# Options with which a toy has the form that dense prediction wants, so that nothing is to be said.
DENSE = {"nextvit_small": {"extra_norm": True}}


def build_segmenter(name: str = "smt_tiny", head: str = "upernet", num_classes: int = 7, **options: Any) -> Segmenter:
    """A segmenter in evaluation mode, with batch-norm statistics and affine weights drawn at random."""
    small = {**(toy(name).options if not name.startswith("timm:") else {}), **DENSE.get(name, {})}
    model = convattn.create_segmenter(name, head, num_classes, **{"width": 8, **small, **options})
    randomise_norms(model)
    return model.eval()


class GivenLevels(nn.Module):
    """Stands where a backbone would, and gives the same maps for all images."""

    def __init__(self, maps: list[Tensor]):
        super().__init__()
        self.maps = maps
        self.feature_info = [
            dict(num_chs=each.shape[1], reduction=stride) for each, stride in zip(maps, (4, 8, 16, 32), strict=True)
        ]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps
