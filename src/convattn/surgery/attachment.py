"""A block behind a module of somebody's model: registered as its child, run by a forward hook.

    place ── output ──┬──────────────────────────── + ── what everyone behind `place` sees
                      └── mixer ── (− x) ── scale ──┘

The child's keys are the only new ones in the state dict, and nothing that was there is renamed or moved.
"""

from typing import Any, Literal

from timm.layers import LayerScale2d
from torch import Tensor, nn

from convattn.mixers.registry import create_identity, create_mixer, is_gate
from convattn.surgery.attentions import project_maps, projected_maps
from convattn.surgery.places import Place
from convattn.surgery.trace import find_grid

__all__ = ["CHILD", "Attachment", "Init", "attach_at", "detach_from"]

CHILD = "attached"  # name of the child, and of the hook
Init = Literal["identity", "paper"]


class Attachment(nn.Module):
    """What is attached: x -> x + scale · change(x), change(x) = mixer(x), or mixer(x) - x for a gate.

    A gate (`das`, `se`, …) hands its input on, weighted; other mixers compute new values, so they stand beside a
    shortcut. Without a scale a gate's output is simply mixer(x).

    Args:
        mixer: (B, C, H, W) -> (B, C, H, W).
        dim: channels C.
        is_gate: whether the mixer's output takes the place of its input.
        has_scale: a learnt factor per channel that starts at 0.
        layout: "NCHW"; "NHWC" for maps (B, H, W, C), as inside Swin; "tokens" for (B, H·W, C) behind a module that is
            told (H, W), as PVT's blocks are.
        maps: how many maps of `dim` channels lie side by side in the output, as queries, keys and values do. All are
            mixed with the same weights, and a batch norm in training sees them together.
    """

    is_inserted = True  # what `places` and `history` look for

    def __init__(self, mixer: nn.Module, dim: int, *, is_gate: bool, has_scale: bool, layout: str, maps: int = 1):
        super().__init__()
        self.mixer = mixer
        self.scale = LayerScale2d(dim, 0.0) if has_scale else None
        self.is_gate = is_gate
        self.layout = layout
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        """x, unchanged: a container that calls all its children in turn comes by here, the work is the hook's."""
        return x

    def apply_to(self, output: Tensor, inputs: Any = ()) -> Tensor:
        """The output of the place, and what it was called with -> what those behind it see, in the same layout."""
        if self.layout == "NHWC":
            apart = output.permute(0, 3, 1, 2).unflatten(1, (self.maps, -1)).flatten(0, 1)
            return self._mix(apart).unflatten(0, (-1, self.maps)).flatten(1, 2).permute(0, 2, 3, 1)
        if self.layout == "tokens":
            grid = find_grid(inputs)
            assert grid is not None
            return self._mix(output.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        return self._mix(output)

    def _mix(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mixed = self.mixer(x)
        if self.scale is not None:
            return x + self.scale(mixed - x if self.is_gate else mixed)
        return mixed if self.is_gate else x + mixed


def run_attachment(place: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The forward hook: it finds its block by name, so copies and pickles of the place run their own."""
    attachment: Any = place._modules[CHILD]
    return attachment.apply_to(output, inputs)


def attach_at(model: nn.Module, place: Place, mixer: str, init: Init, options: dict[str, Any]) -> dict[str, Any]:
    """Put a fresh block behind `place` of `model`, in place; returns the entry for the table.

    Raises:
        ValueError: if something is attached there, or the mixer cannot be made for this width.
    """
    module = model.get_submodule(place.name)
    if isinstance(module._modules.get(CHILD), Attachment):
        raise ValueError(f"{place.name} has a block attached already; detach the model first, or choose another place")
    if hasattr(module, CHILD):
        raise ValueError(f"{place.name} has a member {CHILD!r} of its own, so nothing can be attached there")
    try:
        identity = create_identity(mixer, place.channels, **options) if init == "identity" else None
        block = identity or create_mixer(mixer, place.channels, **options)
    except (ValueError, TypeError) as error:  # a TypeError where an option has a value of another kind
        raise ValueError(f"{mixer} at {place.name} ({place.channels} channels): {error}") from error
    maps = projected_maps(model).get(place.name)
    attachment = Attachment(
        block,
        place.channels,
        is_gate=maps is not None or is_gate(mixer),  # queries, keys and values pass through the block
        has_scale=init == "identity" and identity is None,
        layout=place.layout,
        maps=maps or 1,
    )
    if maps is not None:
        project_maps(model, place.name)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is not None:
        attachment.to(like.device, like.dtype)
    module.add_module(CHILD, attachment.train(module.training))
    # Under a name, not a number from torch's counter: that starts anew in each process, and in one that unpickled this
    # model the next hook of somebody else would take our number and our place. First, so that those who listen to the
    # place (feature extractors, Grad-CAM) get the new map.
    module._forward_hooks[CHILD] = run_attachment  # type: ignore[index]
    module._forward_hooks.move_to_end(CHILD, last=False)  # type: ignore[attr-defined]
    return {
        "kind": "attach",
        "place": place.name,
        "mixer": mixer,
        "init": init,
        "options": options,
        "channels": place.channels,
        "layout": place.layout,
        "parameters": sum(parameter.numel() for parameter in attachment.parameters()),
    }


def detach_from(module: nn.Module) -> bool:
    """Take the block away from `module`, in place; whether there was one."""
    if not isinstance(module._modules.get(CHILD), Attachment):
        return False
    del module._modules[CHILD]
    del module._forward_hooks[CHILD]  # type: ignore[arg-type]
    return True
