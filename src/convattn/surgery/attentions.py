"""Queries, keys and values inside timm's attentions, as maps that a block can be put behind.

timm projects tokens that have forgotten their grid. Here the same attentions, weights and names included, project whole
maps (B, H, W, C), so that what hangs on a projection sees neighbours:

    PVTv2:  x ─────────── q ── map (H, W) ──────────────┐
            x ─ reduced ─ kv ─ two maps (H/sr, W/sr) ───┴─ attention ─ proj
    Swin:   x ─ qkv ─ three maps (H, W) ─ shift ─ windows ─ attention ─ proj

Queries and keys of PVTv2 lie on different grids, so each projection has a block of its own; k and v share theirs. In
Swin q, k and v share one, and its groups of neighbours cross the borders of the windows, which are cut afterwards.
"""

from typing import Any

import torch.nn.functional as F
from timm.models.pvt_v2 import Attention
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

__all__ = ["MapAttention", "MapWindowBlock", "plain_class", "project_maps", "project_tokens", "projected_maps"]


class MapAttention(Attention):
    """PVTv2's attention, its projections applied to maps: (B, N, C) and (H, W) -> (B, N, C), the same values."""

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:
        height, width = feat_size
        x = x.unflatten(1, (height, width))
        query = self.q(x).flatten(1, 2)
        key, value = self.kv(self._reduce(x)).flatten(1, 2).chunk(2, -1)
        query, key, value = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for tokens in (query, key, value)
        )
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def _reduce(self, x: Tensor) -> Tensor:
        """The map that keys and values come from: (B, H, W, C) -> (B, H', W', C)."""
        if self.sr is None:
            return x
        maps = x.permute(0, 3, 1, 2)
        reduced = self.norm(self.sr(maps if self.pool is None else self.pool(maps)).permute(0, 2, 3, 1))
        return reduced if self.act is None else self.act(reduced)


class MapWindowBlock(SwinTransformerBlock):
    """Swin's block, the projection applied to the whole map in front of the windows; the same values."""

    def _attn(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        (window_height, window_width), (down, right) = self.window_size, self.shift_size
        attention: Any = self.attn
        qkv = attention.qkv(x).roll((-down, -right), (1, 2))

        # Positions that fill the last windows are zeros in front of the projection: its bias behind it.
        empty = qkv.new_zeros(qkv.shape[-1]) if attention.qkv.bias is None else attention.qkv.bias.to(qkv.dtype)
        full_height, full_width = height + -height % window_height, width + -width % window_width
        filled = empty.expand(batch, full_height, full_width, -1).clone()
        filled[:, :height, :width] = qkv

        windows = window_partition(filled, self.window_size).flatten(1, 2)
        query, key, value = windows.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = attention._get_rel_pos_bias()
        mask = self.get_attn_mask(filled) if getattr(self, "dynamic_mask", False) else self.attn_mask
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).repeat(batch, 1, 1, 1)
        dropout = attention.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        mixed = attention.proj_drop(attention.proj(mixed.transpose(1, 2).flatten(2)))

        mixed = mixed.unflatten(1, (window_height, window_width))
        merged = window_reverse(mixed, self.window_size, full_height, full_width)
        return merged[:, :height, :width].roll((down, right), (1, 2))


# timm's class -> the same over maps, and which maps its projections give side by side
_FORMS: dict[type[nn.Module], tuple[type[nn.Module], dict[str, int]]] = {
    Attention: (MapAttention, {"q": 1, "kv": 2}),
    SwinTransformerBlock: (MapWindowBlock, {"attn.qkv": 3}),
}
_PLAIN = {form: plain for plain, (form, _) in _FORMS.items()}


def projected_maps(model: nn.Module) -> dict[str, int]:
    """Names of the projections inside the known attentions of `model` -> how many maps each gives side by side."""
    return {
        f"{name}.{projection}".removeprefix("."): count
        for name, module in model.named_modules()
        for projection, count in _FORMS.get(plain_class(module), (None, {}))[1].items()
    }


def project_maps(model: nn.Module, projection: str | None = None) -> None:
    """Let the attention that `projection` belongs to, or every known one, project maps instead of tokens; in place."""
    for name, module in model.named_modules():
        form, projections = _FORMS.get(type(module), (None, {}))
        if form and (projection is None or projection in {f"{name}.{part}".removeprefix(".") for part in projections}):
            module.__class__ = form


def project_tokens(module: nn.Module) -> None:
    """Undo `project_maps` on one module, in place."""
    module.__class__ = plain_class(module)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of `module`, timm's own for an attention that projects maps."""
    return _PLAIN.get(type(module), type(module))
