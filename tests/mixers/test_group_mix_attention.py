"""Group-mix attention against loops over heads and positions, and its aggregators kind by kind."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convattn
from convattn.mixers.group_mix_attention import (
    GroupAggregator,
    GroupMixAttention,
    PositionConv,
    SegmentAggregator,
    SegmentConvs,
)
from convattn.ops.linear import Linear2d
from toys import randomise_norms, relative_error


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def built(module: nn.Module) -> nn.Module:
    """In float64, with statistics, norms and biases drawn at random."""
    randomise_norms(module)
    return module.double()


def batch_norm(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    normed = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
    return normed * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def hardswish(x: torch.Tensor) -> torch.Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    kernel = weight.shape[-1]
    planes = [
        F.conv2d(x[:, c : c + 1], weight[c : c + 1], None if bias is None else bias[c : c + 1], padding=kernel // 2)
        for c in range(x.shape[1])
    ]
    return torch.cat(planes, 1)


def naive_gma(block: GroupMixAttention, x: torch.Tensor) -> torch.Tensor:
    """The specification, in loops: q, k and v stacked as images, segments, heads one by one."""
    batch, dim, height, width = x.shape
    segment, inner = dim // 5, 4 * dim // 5
    weight, bias = block.qkv.weight.flatten(1), block.qkv.bias
    stacked = torch.cat(
        [
            torch.einsum("oi,bihw->bohw", weight[i * dim : (i + 1) * dim], x)
            + bias[i * dim : (i + 1) * dim].view(-1, 1, 1)
            for i in range(3)
        ]
    )  # 3B maps: q first, then k, then v
    aggregator = block.aggregator
    groups = []
    for index in range(4):
        part = stacked[:, index * segment : (index + 1) * segment]
        branch = aggregator.branches[index]
        if index:
            part = depthwise(part, branch.mix.weight)
            part = torch.einsum("oi,bihw->bohw", branch.pointwise.weight.flatten(1), part)
        groups.append(hardswish(batch_norm(part, branch.norm)))
    query, key, value = torch.cat(groups, 1).split(batch)

    head_dim = inner // 8
    kernel_of_head = {0: 0, 1: 0, 2: 1, 3: 1, 4: 1, 5: 2, 6: 2, 7: 2}  # which convolution of the position code
    mixed = torch.zeros_like(query)
    for image in range(batch):
        for head in range(8):
            own = slice(head * head_dim, (head + 1) * head_dim)
            q, k, v = (t[image, own].flatten(1).T for t in (query, key, value))  # (N, head_dim)
            context = torch.zeros(head_dim, head_dim, dtype=x.dtype)
            weights = (k - k.amax(0)).exp()
            weights = weights / weights.sum(0)  # over the positions
            for position in range(height * width):
                context = context + torch.outer(weights[position], v[position])
            attended = torch.stack([q[position] @ context for position in range(height * width)])
            mixed[image, own] = (dim // 8) ** -0.5 * attended.T.unflatten(1, (height, width))
    first_channel = {0: 0, 1: 2 * head_dim, 2: 5 * head_dim}
    for head, which in kernel_of_head.items():
        conv = block.position.convs[which]
        own = slice(head * head_dim, (head + 1) * head_dim)
        of_conv = slice(own.start - first_channel[which], own.stop - first_channel[which])
        position = depthwise(value[:, own], conv.weight[of_conv], conv.bias[of_conv])
        mixed[:, own] = mixed[:, own] + query[:, own] * position

    rest = torch.cat(stacked[:, inner:].split(batch), 1)
    branch = aggregator.non_attention
    rest = torch.einsum("oi,bihw->bohw", branch.pointwise.weight.flatten(1), depthwise(rest, branch.mix.weight))
    centred = rest - rest.mean(1, keepdim=True)
    rest = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    rest = hardswish(rest * branch.norm.weight.view(-1, 1, 1) + branch.norm.bias.view(-1, 1, 1))
    joined = torch.cat([mixed, rest], 1)
    return torch.einsum("oi,bihw->bohw", block.proj.weight.flatten(1), joined) + block.proj.bias.view(-1, 1, 1)


@pytest.mark.parametrize("dim", [10, 30])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_specification_in_loops(dim, training):
    """In training the norms see q, k and v together: 3B maps."""
    block = built(GroupMixAttention(dim)).train(training)
    x = maps(2, dim, 4, 5)
    assert relative_error(block(x), naive_gma(block, x)) < 1e-12


def test_the_scale_is_of_the_full_width():
    assert GroupMixAttention(200).scale == pytest.approx(25**-0.5)
    assert GroupMixAttention(360).scale == pytest.approx(45**-0.5)


def test_statistics_of_training_are_over_queries_keys_and_values():
    block = GroupMixAttention(10).double().train()
    x = maps(3, 10, 4, 4)
    with torch.no_grad():
        block(x)
        joint = torch.cat([part[:, :2] for part in block.qkv(x).chunk(3, 1)])  # segment 0 has no layer in front
    norm = block.aggregator.branches[0].norm
    assert relative_error(norm.running_mean, 0.1 * joint.mean((0, 2, 3))) < 1e-12
    assert relative_error(norm.running_var, 0.9 + 0.1 * joint.var((0, 2, 3))) < 1e-12
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("options", [{}, dict(aggregators="min"), dict(aggregators="off", inner_dim=8)])
def test_gradients(options):
    block = built(GroupMixAttention(10, **options)).eval()
    for branch in block.modules():  # gradcheck's steps must not cross the corners of the activation
        if isinstance(branch, nn.BatchNorm2d):
            nn.init.uniform_(branch.bias, 0.4, 0.6)
            branch.weight.data.mul_(0.1)
    x = maps(1, 10, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(block, (x,))


# Aggregators


def pooled(x: torch.Tensor, kernel: int, reduce) -> torch.Tensor:
    """`reduce` over the window around each position, as far as it lies inside the map."""
    out = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            rows = slice(max(0, i - kernel // 2), i + kernel // 2 + 1)
            columns = slice(max(0, j - kernel // 2), j + kernel // 2 + 1)
            out[:, :, i, j] = reduce(x[:, :, rows, columns])
    return out


@pytest.mark.parametrize(
    ("kind", "reduce"),
    [
        ("avg", lambda window: window.mean((2, 3))),
        ("max", lambda window: window.amax((2, 3))),
        ("min", lambda window: window.amin((2, 3))),
        ("identity", None),
    ],
)
@pytest.mark.parametrize("pointwise", [False, True])
def test_a_kind_without_weights_is_its_formula(kind, reduce, pointwise):
    branch = built(SegmentAggregator(6, kind, 5, pointwise)).eval()
    x = maps(2, 6, 4, 7)
    want = x if reduce is None else pooled(x, 5, reduce)
    if pointwise:
        want = torch.einsum("oi,bihw->bohw", branch.pointwise.weight.flatten(1), want)
    assert relative_error(branch(x), hardswish(batch_norm(want, branch.norm))) < 1e-12
    assert relative_error(branch.fused()(x), branch(x)) < 1e-12


@pytest.mark.parametrize("kind", ["dwconv", "avg", "max", "min", "identity"])
def test_one_word_sets_segments_1_to_3_and_the_branch_beside(kind):
    aggregator = GroupAggregator(20, aggregators=kind)
    wanted = type(SegmentAggregator(4, kind, 3).mix)
    assert isinstance(aggregator.branches[0].mix, nn.Identity)
    assert [type(branch.mix) for branch in aggregator.branches[1:]] == [wanted] * 3
    assert type(aggregator.non_attention.mix) is wanted


def test_reach_of_each_segment_is_its_kernel():
    aggregator = built(GroupAggregator(10)).eval()
    q, k, v = maps(3, 1, 10, 15, 15)
    moved = q.clone()
    moved[:, :, 7, 7] += 1
    before, after = aggregator(q, k, v), aggregator(moved, k, v)
    changed = (before[0] != after[0])[0]
    for segment, reach in enumerate((0, 1, 2, 3)):
        where = changed[2 * segment : 2 * segment + 2].any(0).nonzero()
        assert where.amin(0).tolist() == [7 - reach] * 2 and where.amax(0).tolist() == [7 + reach] * 2
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])
    where = (before[3] != after[3])[0].any(0).nonzero()  # queries reach the branch beside, too
    assert where.amin(0).tolist() == [6, 6] and where.amax(0).tolist() == [8, 8]


def test_all_off_is_plain_attention():
    block = GroupMixAttention(16, aggregators="off").double()
    x = maps(2, 16, 3, 4)
    query, key, value = block.qkv(x).chunk(3, 1)
    heads = []
    for head in range(8):
        own = slice(2 * head, 2 * head + 2)
        q, k, v = (t[:, own].flatten(2) for t in (query, key, value))
        heads.append(torch.einsum("bcn,bcd->bdn", q, torch.einsum("bcn,bdn->bcd", k.softmax(2), v)).view(2, 2, 3, 4))
    want = block.proj(torch.cat(heads, 1) / math.sqrt(2) + block.position(query, value))
    assert relative_error(block(x), want) < 1e-12
    assert not list(block.aggregator.parameters())


def test_a_segment_switched_off_passes_as_it_is():
    aggregator = built(GroupAggregator(20, aggregators=("off", "avg", "off", "dwconv", "off"))).eval()
    q, k, v = maps(3, 2, 20, 5, 6)
    *outputs, beside = aggregator(q, k, v)
    assert beside is None and aggregator.attention_dim == 20
    for before, after in zip((q, k, v), outputs, strict=True):
        for segment in range(5):
            own = slice(4 * segment, 4 * segment + 4)
            assert torch.equal(before[:, own], after[:, own]) == (segment in (0, 2, 4))


def test_aggregators_around_another_attention():
    aggregator = GroupAggregator(40)
    query, key, value, beside = aggregator(*torch.randn(3, 2, 40, 7, 9))
    assert query.shape == key.shape == value.shape == (2, 32, 7, 9)
    assert beside.shape == (2, 8, 7, 9)
    assert query.shape[1] == aggregator.attention_dim


def test_aggregators_alone_are_fused_where_they_stand():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.aggregator = GroupAggregator(20, aggregators=("identity", "dwconv", "max", "dwconv", "dwconv"))

        def forward(self, x):
            return torch.cat(self.aggregator(x, 2 * x, -x), 1)

    model = built(Foreign()).eval()
    x = maps(2, 20, 5, 7)
    fused = convattn.fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert relative_error(fused(x), model(x)) < 1e-12


def test_the_position_code_multiplies_the_query():
    position = PositionConv(16).double()
    for conv in position.convs:
        nn.init.zeros_(conv.weight)
        nn.init.constant_(conv.bias, 3.0)
    query = maps(2, 16, 4, 4)
    assert relative_error(position(query, maps(2, 16, 4, 4)), 3 * query) < 1e-12
    assert [conv.in_channels for conv in position.convs] == [4, 6, 6]
    assert [conv.kernel_size[0] for conv in position.convs] == [3, 5, 7]


def test_the_control_convolves_quarters_in_front():
    block = built(GroupMixAttention(16, placement="before")).eval()
    x = maps(2, 16, 5, 6)
    plain = GroupMixAttention(16, aggregators="off").double()
    plain.load_state_dict({key: t for key, t in block.state_dict().items() if not key.startswith("convs.")})
    parts = [branch(part) for branch, part in zip(block.convs.branches, x.chunk(4, 1), strict=True)]
    assert relative_error(block(x), plain(torch.cat(parts, 1))) < 1e-12


# Shapes and forms


def test_any_width_outside_and_any_size():
    block = GroupMixAttention(12, inner_dim=20)
    for size in ((1, 1), (1, 9), (5, 2)):
        assert block.eval()(torch.randn(2, 12, *size)).shape == (2, 12, *size)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8)])
def test_fused_form_agrees_in_the_layout_of_either_kind(size):
    block = built(GroupMixAttention(20)).eval()
    before = {key: tensor.clone() for key, tensor in block.state_dict().items()}
    fused = block.fused()
    x = maps(2, 20, *size)
    with torch.no_grad():
        assert relative_error(fused(x), block(x)) < 1e-12
        assert relative_error(fused(x.to(memory_format=torch.channels_last)), block(x)) < 1e-12
    assert all(torch.equal(tensor, before[key]) for key, tensor in block.state_dict().items())


def test_learnt_aggregators_become_one_convolution():
    """Two depthwise ones are left: of all aggregators, and of the position code."""
    fused = GroupMixAttention(20, kernels=(3, 5, 9)).fused()
    convs = [module for module in fused.modules() if type(module) is nn.Conv2d]
    assert [(conv.in_channels, conv.groups, conv.kernel_size) for conv in convs] == [(60, 60, (9, 9)), (16, 16, (7, 7))]


def test_fused_form_exports_with_dynamic_sizes_and_compiles_as_one_graph():
    fused = built(GroupMixAttention(20)).eval().fused()
    dynamic = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    exported = torch.export.export(fused, (maps(2, 20, 8, 12),), dynamic_shapes=dynamic).module()
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    with torch.no_grad():
        for x in (maps(1, 20, 5, 7), maps(3, 20, 12, 4)):
            assert relative_error(exported(x), fused(x)) < 1e-12
            assert relative_error(compiled(x), fused(x)) < 1e-12


@pytest.mark.parametrize("dim", [20, 80, 200])
@pytest.mark.parametrize("options", [{}, dict(kernels=(5, 3, 3), non_attention_kernel=7)])
def test_graph_form_agrees_and_exports_with_dynamic_sizes(dim, options):
    block = built(GroupMixAttention(dim, **options)).eval()
    form = block.fused().graph_form()
    dynamic = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    exported = torch.export.export(form, (maps(2, dim, 8, 12),), dynamic_shapes=dynamic).module()
    with torch.no_grad():
        for x in (maps(1, dim, 5, 7), maps(3, dim, 12, 4)):
            assert relative_error(form(x), block(x)) < 1e-12
            assert relative_error(exported(x), block(x)) < 1e-12


def test_graph_form_convolves_no_taps_that_are_zero_in_the_branch_beside():
    form = GroupMixAttention(20, kernels=(3, 5, 9)).fused().graph_form()
    convs = [module for module in form.modules() if isinstance(module, nn.Conv2d)]
    depthwise = [(conv.in_channels, conv.kernel_size) for conv in convs if conv.groups == conv.in_channels]
    assert sorted(depthwise) == [(12, (3, 3)), (16, (7, 7)), (16, (9, 9))]
    assert not any(isinstance(module, Linear2d) for module in form.modules())


def test_fused_form_keeps_the_precision_of_the_weights():
    block = GroupMixAttention(20, aggregators=("identity", "identity", "dwconv", "identity", "identity"))
    fused = block.to(torch.bfloat16).eval().fused()
    assert {tensor.dtype for tensor in fused.state_dict().values()} == {torch.bfloat16}
    assert fused(torch.randn(1, 20, 4, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupMixAttention(64), "dim 64 does not .* that does is 60; inner_dim may"),
        (lambda: GroupMixAttention(65), "dim 65 does not divide into 8 heads of segments; the nearest that does is 60"),
        (lambda: GroupAggregator(24), "dim 24 does not divide into 5 segments; the nearest that does is 25"),
        (lambda: GroupAggregator(3), "dim 3 does not divide into 5 segments; the nearest that does is 5"),
        (lambda: GroupAggregator(20, aggregators=("identity", "sum", "avg", "avg", "avg")), "aggregator 'sum' is unkn"),
        (lambda: GroupAggregator(20, kernels=(3, 5)), r"kernels \(3, 5\) must be 3"),
        (lambda: SegmentConvs(18, "dwconv", (3, 5, 7), False), "dim 18 does not divide into 4 segments; .* is 16"),
        (lambda: GroupMixAttention(20, aggregators=("off",) * 4), "are 4; give one kind for all, or 5, one a segment"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
