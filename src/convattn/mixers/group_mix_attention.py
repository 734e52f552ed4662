"""Group-mix attention (GMA), the mixer of GroupMixFormer, and its aggregators, which also go around other attentions.

Paper: "Advancing Vision Transformers with Group-Mix Attention", Ge, Ding, Tong, Yuan, Wang, Song, Luo, 2023,
arXiv 2311.15157.

    x ─ qkv ─┬ segment 0: norm, act ────────────────────────┐
             ├ segment 1: depthwise 3×3, 1×1, norm, act ────┤
             ├ segment 2: depthwise 5×5, 1×1, norm, act ────┼─ q, k, v ─ factorised attention ─┐
             ├ segment 3: depthwise 7×7, 1×1, norm, act ────┘            + q · conv(v)         ├─ proj ─ out
             └ segment 4 of q, k and v: depthwise 3×3, 1×1, layer norm, act ───────────────────┘

A query, key or value of segment 1 to 3 stands for a group of tokens: attention compares groups of several sizes with
one another and with single tokens. The cost is linear in the number of positions.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy

import torch
from timm.layers import LayerNorm2d, register_notrace_module
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_weights

from convattn.ops.factorised_attention import factorised_attention
from convattn.ops.fold import batch_norm_to_depthwise, merge_depthwise, rows_of_conv, widen_groups
from convattn.ops.linear import Linear2d

__all__ = ["AGGREGATORS", "GroupAggregator", "GroupMixAttention", "SegmentConvs", "aggregator_kinds"]

NUM_HEADS = 8  # of every released model; the position kernels below are given out by heads
POSITION_HEADS = {3: 2, 5: 3, 7: 3}  # kernel of the position convolution -> how many heads it serves, in order

AGGREGATORS = ("dwconv", "avg", "max", "min", "identity", "off")


class MinPool2d(nn.MaxPool2d):
    """The smallest value under the window."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(-x)


def mixing(kind: str, channels: int, kernel_size: int) -> nn.Module:
    """What an aggregator does over positions, each channel by itself; the size is kept."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel {kernel_size} must be odd, so that the size is kept")
    padding = kernel_size // 2
    if kind == "dwconv":
        return nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels, bias=False)
    if kind == "avg":  # at the border the mean of the positions that exist
        return nn.AvgPool2d(kernel_size, 1, padding, count_include_pad=False)
    if kind == "identity":
        return nn.Identity()
    return (nn.MaxPool2d if kind == "max" else MinPool2d)(kernel_size, 1, padding)


class SegmentAggregator(nn.Module):
    """act(norm(1×1(mixing(x)))), the token groups of one segment: (B, s, H, W) -> (B, s, H, W).

    Args:
        dim: channels s.
        kind: how positions mix: dwconv, avg, max, min, or identity.
        kernel_size: side of the group of tokens, odd.
        pointwise: whether a 1×1 convolution follows; the learnt kind (dwconv) always has one.
    """

    def __init__(self, dim: int, kind: str, kernel_size: int = 1, pointwise: bool = False):
        super().__init__()
        self.mix = mixing(kind, dim, kernel_size)
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False) if pointwise or kind == "dwconv" else nn.Identity()
        self.norm = nn.BatchNorm2d(dim)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.pointwise(self.mix(x))))

    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the 1×1 convolution, or a scale and shift where there is none."""
        if isinstance(self.pointwise, nn.Conv2d):
            last: nn.Module = Linear2d.from_conv1x1(fuse_conv_bn_eval(self.pointwise, self.norm))
        else:
            last = batch_norm_to_depthwise(self.norm)
        return nn.Sequential(deepcopy(self.mix), last, deepcopy(self.act))


class NonAttentionAggregator(nn.Module):
    """act(norm(1×1(mixing([q | k | v])))), a branch beside the attention: (B, 3s, H, W) -> (B, s, H, W)."""

    def __init__(self, dim: int, kind: str, kernel_size: int):
        super().__init__()
        self.mix = mixing(kind, 3 * dim, kernel_size)
        self.pointwise = nn.Conv2d(3 * dim, dim, 1, bias=False)
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.pointwise(self.mix(x))))


class GroupAggregator(nn.Module):
    """Queries, keys and values become mixtures over groups of neighbours, and a fifth of them bypasses the attention.

    The channels fall into five segments. Segments 0 to 3 of q, k and v go each through an aggregator, with the same
    weights for q, k and v, and are joined again: C' = 4C/5 channels for an attention of any kind. Segment 4 of all
    three is mixed into C/5 channels that belong behind the attention's result, in front of its projection.

    Batch norm in training sees q, k and v together: its statistics are over 3B maps.

    Source: section 3.2 of the paper and its code.

    Args:
        dim: channels C; a multiple of 5.
        aggregators: one kind for every segment, or five kinds in order, the last for the branch beside the attention.
            `dwconv` (learnt), `avg`, `max`, `min` (pooling with the segment's kernel; means count no padding),
            `identity` (norm and activation alone; segment 0 takes it with one kind for all), `off` (nothing: the
            segment passes as it is; the last segment then joins the attention, and C' = C).
        kernels: of segments 1, 2 and 3; odd.
        non_attention_kernel: of the branch beside the attention; odd.
        pool_pointwise: keep the 1×1 convolution behind pooling, too.

    Raises:
        ValueError: if `dim` is not a multiple of 5, a kind is unknown, or a kernel is even.
    """

    def __init__(
        self,
        dim: int,
        *,
        aggregators: str | Sequence[str] = "dwconv",
        kernels: Sequence[int] = (3, 5, 7),
        non_attention_kernel: int = 3,
        pool_pointwise: bool = False,
    ):
        super().__init__()
        kinds = aggregator_kinds(aggregators, 5)
        self.num_segments = 1 if set(kinds) == {"off"} else 5
        check_divides(dim, self.num_segments, f"into {self.num_segments} segments")
        width = dim // self.num_segments
        self.non_attention: NonAttentionAggregator | None = None
        if self.num_segments == 1:
            self.branches = nn.ModuleList([nn.Identity()])
        else:
            self.branches = segment_aggregators(width, kinds[:4], kernels, pool_pointwise)
            if kinds[4] == "off":
                self.branches.append(nn.Identity())
            else:
                self.non_attention = NonAttentionAggregator(width, kinds[4], non_attention_kernel)
        self.attention_dim = width * len(self.branches)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q, k and v (B, C, H, W) -> the same with C' channels, and the branch beside them (B, C/5, H, W) or None."""
        if self.num_segments == 1:
            return query, key, value, None
        segments = torch.cat([query, key, value]).chunk(self.num_segments, 1)
        groups = torch.cat([branch(part) for branch, part in zip(self.branches, segments, strict=False)], 1)
        # Not `chunk`, to which an open number of images could leave another remainder, and not `unflatten`, which gives
        # a single image a stride that reads as channels first: every convolution behind it would copy its map.
        of_each = [query.shape[0]] * 3
        query, key, value = groups.split(of_each)
        if self.non_attention is None:
            return query, key, value, None
        return query, key, value, self.non_attention(torch.cat(segments[-1].split(of_each), 1))


@register_notrace_module
class SegmentConvs(nn.Module):
    """The aggregators of segments 0 to 3 as a layer of their own, over quarters of the channels: (B, C, H, W), kept."""

    def __init__(
        self,
        dim: int,
        aggregators: str | Sequence[str] = "dwconv",
        kernels: Sequence[int] = (3, 5, 7),
        pool_pointwise: bool = False,
    ):
        super().__init__()
        check_divides(dim, 4, "into 4 segments")
        self.branches = segment_aggregators(dim // 4, aggregator_kinds(aggregators, 4), kernels, pool_pointwise)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(part) for branch, part in zip(self.branches, x.chunk(4, 1), strict=True)], 1)

    def fused(self) -> "SegmentConvs":
        """The inference form: that of each aggregator."""
        form = deepcopy(self)
        form.branches = fused_aggregators(self.branches)
        return form


class PositionConv(nn.Module):
    """q · conv(v), a position code that depends on content; (B, C, H, W) twice -> (B, C, H, W).

    One depthwise convolution with bias per group of heads: 3×3 for two heads, 5×5 for three, 7×7 for three.

    Source: the paper's code (`crpe`, after CoaT, arXiv 2104.06399); the paper itself does not mention it.
    """

    def __init__(self, dim: int):
        super().__init__()
        head_dim = dim // NUM_HEADS
        self.convs = nn.ModuleList(
            nn.Conv2d(heads * head_dim, heads * head_dim, kernel, padding=kernel // 2, groups=heads * head_dim)
            for kernel, heads in POSITION_HEADS.items()
        )
        self.widths = [heads * head_dim for heads in POSITION_HEADS.values()]

    def forward(self, query: Tensor, value: Tensor) -> Tensor:
        parts = [conv(part) for conv, part in zip(self.convs, value.split(self.widths, 1), strict=True)]
        return query * torch.cat(parts, 1)

    def fused(self) -> "PositionConv":
        """The inference form: one convolution, kernels zero-padded to 7×7."""
        form = deepcopy(self)
        form.convs, form.widths = nn.ModuleList([depthwise_of(self.convs)]), [sum(self.widths)]
        return form


@register_notrace_module
class GroupMixAttention(nn.Module):
    """out = proj([scale · q (softmax(k)ᵀ v) + q · conv(v) | branch]), over groups of tokens; any size of map.

    The softmax runs over the positions, for each channel of k; q is not normalised. There is no map from position to
    position. `scale` is (C // 8)^-0.5 of the full width C, although a head has C'/8 channels: as the released weights
    have it.

    The inner tensors that explanations read: the input of `proj`, five segments of C/5 channels (single tokens, groups
    of 3×3, 5×5, 7×7, and the branch beside the attention), and its output, their ensemble.

    Source: section 3 of the paper and its code.

    Args:
        dim: channels of input and output.
        inner_dim: channels C of q, k and v, a multiple of 10; by default `dim`.
        aggregators, kernels, non_attention_kernel, pool_pointwise: as in `GroupAggregator`.
        placement: where the aggregators are: "inside", on q, k and v; or "before", once in front of `qkv` over quarters
            of the channels, without a branch beside a then plain attention (the paper's control, four kinds in order).

    Raises:
        ValueError: if the width does not divide, or an option is unknown.
    """

    def __init__(
        self,
        dim: int,
        *,
        inner_dim: int | None = None,
        aggregators: str | Sequence[str] = "dwconv",
        kernels: Sequence[int] = (3, 5, 7),
        non_attention_kernel: int = 3,
        pool_pointwise: bool = False,
        placement: str = "inside",
    ):
        super().__init__()
        inner_dim = dim if inner_dim is None else inner_dim
        if placement not in ("inside", "before"):
            raise ValueError(f"placement {placement!r} is unknown; choose inside or before")
        if placement == "before" and non_attention_kernel != 3:
            raise ValueError(f"non_attention_kernel {non_attention_kernel}: placement 'before' has no such branch")
        is_inside = placement == "inside"
        kinds = aggregator_kinds(aggregators if is_inside else "off", 5)
        # 8 heads over four of five segments, over all five, or over undivided channels
        multiple = 10 if kinds[4] != "off" else 8 if set(kinds) == {"off"} else 40
        check_divides(inner_dim, multiple, f"into {NUM_HEADS} heads of segments", "; inner_dim may differ from dim")
        self.convs = nn.Identity() if is_inside else SegmentConvs(dim, aggregators, kernels, pool_pointwise)
        self.qkv = Linear2d(dim, 3 * inner_dim)
        self.aggregator = GroupAggregator(
            inner_dim,
            aggregators=kinds,
            kernels=kernels,
            non_attention_kernel=non_attention_kernel,
            pool_pointwise=pool_pointwise,
        )
        self.scale = (inner_dim // NUM_HEADS) ** -0.5
        self.position = PositionConv(self.aggregator.attention_dim)
        self.proj = Linear2d(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = self.qkv(self.convs(x)).chunk(3, 1)
        query, key, value, beside = self.aggregator(query, key, value)
        mixed = attend(query, key, value, self.scale) + self.position(query, value)
        return self.proj(mixed if beside is None else torch.cat([mixed, beside], 1))

    def fused(self) -> nn.Module:
        """The inference form: all aggregators as one depthwise convolution and one batched product, norms folded."""
        parts = (*self.aggregator.branches, self.aggregator.non_attention)
        if all(isinstance(getattr(part, "mix", None), nn.Conv2d | nn.Identity) for part in parts):
            return FusedGroupMixAttention(self)
        form = deepcopy(self)  # pooling, or segments that pass as they are: each part in its own form
        form.convs = form.convs.fused() if isinstance(form.convs, SegmentConvs) else form.convs
        form.aggregator.branches = fused_aggregators(form.aggregator.branches)
        form.position = form.position.fused()
        return form


class FusedGroupMixAttention(nn.Module):
    """Inference form of `GroupMixAttention` with learnt aggregators.

    The rows of `qkv` are put in the order [q k v of segments 0 to 3 | q k v of segment 4], s channels each. One
    depthwise convolution, its kernels zero-padded to the largest, serves them all; a segment without convolution has a
    kernel that is 1 in its centre. The 1×1 convolutions, with the norms folded in, are one batched product, which reads
    slices of that map in place and leaves its result segment by segment. The attention stays in that order, the two
    heads of a segment as one product under a mask; only the values are put back into a map, for the position code.
    """

    heads: Tensor  # (s, s): the scale where the two heads of a segment meet themselves, 0 elsewhere

    @torch.no_grad()
    def __init__(self, block: GroupMixAttention):
        super().__init__()
        branches = [branch for branch in block.aggregator.branches if isinstance(branch, SegmentAggregator)]
        last = deepcopy(block.aggregator.non_attention)
        assert len(branches) == 4 and last is not None
        self.width = block.qkv.out_channels // 15
        rows = torch.arange(block.qkv.out_channels).view(3, 5, self.width)
        rows = torch.cat([rows[:, :4].flatten(), rows[:, 4].flatten()])
        self.qkv = deepcopy(block.qkv)
        self.qkv.weight, self.qkv.bias = nn.Parameter(block.qkv.weight[rows]), nn.Parameter(block.qkv.bias[rows])
        self.mix = depthwise_of([*map(as_conv, branches)] * 3 + [as_conv(last)])
        self.kernel_beside = as_conv(last).kernel_size[0]
        weights, biases = zip(*map(pointwise_and_norm, branches), strict=True)
        self.weight = nn.Parameter(torch.stack(weights).transpose(1, 2).repeat(3, 1, 1))
        self.bias = nn.Parameter(torch.stack(biases).unsqueeze(1).repeat(3, 1, 1))
        self.act = deepcopy(last.act)
        self.beside = nn.Sequential(Linear2d.from_conv1x1(last.pointwise), last.norm, last.act)
        head = self.weight.new_full((self.width // 2,) * 2, block.scale)
        self.register_buffer("heads", torch.block_diag(head, head))
        self.position = depthwise_of(block.position.convs)
        self.proj = deepcopy(block.proj)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, _, height, width = x.shape
        maps = self.mix(self.qkv(x))
        tokens = maps.permute(0, 2, 3, 1).reshape(-1, 15, self.width)
        groups = self.act(torch.baddbmm(self.bias, tokens[:, :12].transpose(0, 1), self.weight))
        query, key, value = groups.view(3, 4, batch, height * width, self.width).unbind()  # (segment, B, N, s) each
        context = key.softmax(2).transpose(2, 3) @ value * self.heads
        values = value.permute(1, 2, 0, 3).reshape(batch, height, width, 4 * self.width).permute(0, 3, 1, 2)
        position = self.position(values).permute(0, 2, 3, 1).reshape(batch, height * width, 4, self.width)
        mixed = torch.addcmul(query @ context, query, position.permute(2, 0, 1, 3))
        beside = self.beside(maps[:, 12 * self.width :]).permute(0, 2, 3, 1).flatten(1, 2)
        joined = torch.cat([*mixed.unbind(), beside], 2)
        return self.proj(joined.unflatten(1, (height, width)).permute(0, 3, 1, 2))

    def graph_form(self) -> nn.Module:
        """For graph runtimes: everything but the products of heads as convolutions of channels-first maps."""
        return GraphGroupMixAttention(self)


class GraphGroupMixAttention(nn.Module):
    """Form of `FusedGroupMixAttention` for graph runtimes: convolutions of channels-first maps, none cut or joined.

    Queries, keys, values and the branch beside leave a convolution each, in place of slices of one map; the last
    convolution is one on the attention's result plus one on the branch, in place of one on both joined. Attention runs
    with positions last, so that no head is transposed. A segment's 1×1 convolution shares a group with its neighbours
    where that gives the group whole vectors of channels.
    """

    @torch.no_grad()
    def __init__(self, block: FusedGroupMixAttention):
        super().__init__()
        width, inner = block.width, 4 * block.width
        self.scale = float(block.heads[0, 0])
        qkv, proj = block.qkv.graph_form(), block.proj.graph_form()
        rows = [slice(start, start + inner) for start in (0, inner, 2 * inner)]
        self.query, self.key, self.value = (rows_of_conv(qkv, row) for row in rows)
        self.mix = rows_of_conv(block.mix, rows[0])
        pointwise = nn.Conv2d(inner, inner, 1, groups=4)
        pointwise.weight = nn.Parameter(block.weight[:4].transpose(1, 2).reshape(inner, width, 1, 1))
        pointwise.bias = nn.Parameter(block.bias[:4].flatten())
        self.pointwise = widen_groups(pointwise, 16)
        self.act = block.act
        self.position = block.position
        self.proj = nn.Conv2d(inner, proj.out_channels, 1)
        self.proj.weight, self.proj.bias = nn.Parameter(proj.weight[:, :inner]), proj.bias

        beside = slice(3 * inner, None)
        mix = rows_of_conv(block.mix, beside)
        border = (mix.kernel_size[0] - block.kernel_beside) // 2
        kernel = mix.weight[:, :, border:, border:][:, :, : block.kernel_beside, : block.kernel_beside]
        mix.weight, mix.kernel_size = nn.Parameter(kernel.contiguous()), (block.kernel_beside,) * 2
        mix.padding = (block.kernel_beside // 2,) * 2
        dense, norm, act = block.beside
        assert isinstance(dense, Linear2d)
        last = nn.Conv2d(width, proj.out_channels, 1, bias=False)
        last.weight = nn.Parameter(proj.weight[:, inner:])
        self.beside = nn.Sequential(rows_of_conv(qkv, beside), mix, dense.graph_form(), norm, act, last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = (self.act(self.pointwise(self.mix(part(x)))) for part in (self.query, self.key, self.value))
        queries, keys, values = (part.flatten(2).unflatten(1, (NUM_HEADS, -1)) for part in (query, key, value))
        context = keys.softmax(3) @ values.transpose(2, 3) * self.scale  # (B, heads, head_dim, head_dim)
        mixed = (context.transpose(2, 3) @ queries).flatten(1, 2).unflatten(2, x.shape[2:])
        return self.proj(mixed + query * self.position(value)) + self.beside(x)


def aggregator_kinds(aggregators: str | Sequence[str], count: int) -> tuple[str, ...]:
    """One kind for each of `count` segments; one word stands for all but the first, which it leaves single tokens.

    Raises:
        ValueError: if a kind is unknown, their number is wrong, or the first mixes positions.
    """
    if isinstance(aggregators, str):
        first = "off" if aggregators == "off" else "identity"
        kinds = (first, *[aggregators] * (count - 1))
    else:
        kinds = tuple(aggregators)
    unknown = [kind for kind in kinds if kind not in AGGREGATORS]
    if unknown:
        raise ValueError(f"aggregator {unknown[0]!r} is unknown; choose among {', '.join(AGGREGATORS)}")
    if len(kinds) != count:
        raise ValueError(f"aggregators {kinds} are {len(kinds)}; give one kind for all, or {count}, one a segment")
    if kinds[0] not in ("identity", "off"):
        raise ValueError(f"aggregator {kinds[0]!r} of segment 0, the single tokens, must be identity or off")
    return kinds


def segment_aggregators(
    dim: int, kinds: Sequence[str], kernels: Sequence[int], pool_pointwise: bool = False
) -> nn.ModuleList:
    """The aggregators of segments 0 to 3, each of `dim` channels."""
    if len(kernels) != 3:
        raise ValueError(f"kernels {tuple(kernels)} must be 3, of segments 1, 2 and 3")
    branches = nn.ModuleList()
    for kind, kernel in zip(kinds, (1, *kernels), strict=True):
        is_pool = kind in ("avg", "max", "min")
        aggregator = SegmentAggregator(dim, kind, kernel, is_pool and pool_pointwise) if kind != "off" else None
        branches.append(aggregator or nn.Identity())
    return branches


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Factorised attention of maps (B, C, H, W), positions row by row."""
    query_tokens, key_tokens, value_tokens = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (query, key, value))
    mixed = factorised_attention(query_tokens, key_tokens, value_tokens, NUM_HEADS, scale)
    return mixed.unflatten(1, query.shape[2:]).permute(0, 3, 1, 2)


def check_divides(dim: int, multiple: int, what: str, hint: str = "") -> None:
    if dim < multiple or dim % multiple:
        nearest = max(multiple, round(dim / multiple) * multiple)
        raise ValueError(f"dim {dim} does not divide {what}; the nearest that does is {nearest}{hint}")


def fused_aggregators(branches: nn.ModuleList) -> nn.ModuleList:
    """Each aggregator in its inference form; a segment that passes as it is stays."""
    return nn.ModuleList(b.fused() if isinstance(b, SegmentAggregator) else deepcopy(b) for b in branches)


def pointwise_and_norm(branch: SegmentAggregator) -> tuple[Tensor, Tensor]:
    """The 1×1 convolution and the norm of an aggregator as one matrix (s, s) and a shift (s,)."""
    norm, dense = branch.norm, branch.pointwise
    weight = dense.weight.flatten(1) if isinstance(dense, nn.Conv2d) else torch.eye(norm.num_features).to(norm.weight)
    assert norm.running_mean is not None and norm.running_var is not None
    return fuse_linear_bn_weights(weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)


def depthwise_of(convs: Iterable[nn.Module]) -> nn.Conv2d:
    """Depthwise convolutions of successive channels as one, kernels zero-padded to the largest."""
    weight, bias = merge_depthwise(convs)
    dim, _, kernel, _ = weight.shape
    merged = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
    merged.weight, merged.bias = nn.Parameter(weight), nn.Parameter(bias)
    return merged


def as_conv(branch: SegmentAggregator | NonAttentionAggregator) -> nn.Conv2d:
    """How an aggregator mixes positions, as a depthwise convolution; one that changes nothing where it does not."""
    if isinstance(branch.mix, nn.Conv2d):
        return branch.mix
    dim = branch.pointwise.in_channels if isinstance(branch.pointwise, nn.Conv2d) else branch.norm.num_features
    conv = nn.Conv2d(dim, dim, 1, groups=dim, bias=False).to(branch.norm.weight)
    nn.init.ones_(conv.weight)
    return conv
