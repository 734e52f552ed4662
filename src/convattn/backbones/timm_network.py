"""What a network of timm lacks of the backbone contract: checks of images and levels, in one line each.

A family that is a timm network with other blocks inherits from `TimmNetwork` first and from timm's class second:

    class CoTNet(TimmNetwork, ResNet)
"""

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convattn.backbones.pyramid import StridedOptions, check_images, pool_for, take_levels
from convattn.backbones.recompute import Recomputed

__all__ = ["TimmNetwork"]

torch.fx.wrap("check_images")  # it asks for sizes, which a symbolic trace has not


class TimmNetwork:
    """Mixed into a subclass of a timm network in front of it; see `Pyramid` for what the methods promise."""

    options_class = StridedOptions
    measures_once = True  # batch norms, under gradient checkpointing too
    min_input_size = 1  # pixels of the shortest side
    hidden_levels = 0  # timm's levels in front of the first of `feature_info`: two of one stride would be ambiguous

    in_chans: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> the last level (B, C, H', W')."""
        check_images(x, self.in_chans, self.min_input_size)
        return super().forward_features(x)  # type: ignore[misc]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The levels of `feature_info`, in timm's protocol; see `Pyramid.forward_intermediates`.

        Raises:
            ValueError: for another `output_fmt`, or a level that does not exist.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is not available; pyramid levels are 'NCHW'")
        check_images(x, self.in_chans, self.min_input_size)
        wanted = [index + self.hidden_levels for index in take_levels(indices, len(self.feature_info))[0]]
        return super().forward_intermediates(  # type: ignore[misc]
            x, wanted, norm, stop_early, output_fmt, intermediates_only
        )

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what lies behind the last level in `indices`, and the head if asked; returns the levels kept."""
        wanted, deepest = take_levels(indices, len(self.feature_info))
        in_timm = [index + self.hidden_levels for index in wanted]
        super().prune_intermediate_layers(in_timm, prune_norm, prune_head)  # type: ignore[misc]
        if deepest < len(self.feature_info) - 1:
            self.num_features = self.head_hidden_size = self.feature_info[deepest]["num_chs"]
        return wanted

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in backward instead of keeping its activations.

        timm's own way to do so would let batch norms measure each batch twice.
        """
        for stage in self._sequences():
            stage.__class__ = Recomputed if enable else nn.Sequential

    def _sequences(self) -> list[nn.Sequential]:
        """What holds the blocks."""
        return [self.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]  # type: ignore[attr-defined]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, and the pooling if given; see `Pyramid.reset_classifier`."""
        pool = pool_for(num_classes, self.global_pool.pool_type, global_pool)  # type: ignore[attr-defined]
        super().reset_classifier(num_classes, pool)  # type: ignore[misc]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with two or more dimensions that must not decay: none."""
        return set()
