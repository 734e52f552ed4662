"""A training step of each family beside the plain formulation of the same network with the same weights.

python benchmarks/training_step.py                        # about five minutes on two cores
python benchmarks/training_step.py smt_tiny cotnet_50     # some of them
python benchmarks/training_step.py --processor-time       # one thread, two images: for a machine that others use too

The plain formulation computes the same numbers the way the papers' code does: 1×1 convolutions on contiguous maps, a
depthwise convolution per head and a stack, attention with its matrix of weights, local aggregation by unfold,
torchvision's deformable convolution or a gather of the four neighbours of every tap. Each is timed in both memory
layouts. A step is forward, cross entropy, backward: eight images of 224 pixels, float32. The ratio is of the 10 %
quantiles: whatever else the machine does only adds to a time. With --processor-time it is of the least of three.
"""

import sys
import time
from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from timm.models.nextvit import checkpoint_filter_fn as timms_names
from torch import Tensor, nn

from convattn import create_model, to_official
from convattn.backbones.smt import LocalSelfAttention
from convattn.bench.allocator import restart_with_steady_allocator
from convattn.bench.latency import measure_latency
from convattn.mixers.deformable_conv import DeformableConv2d
from convattn.mixers.group_mix_attention import NUM_HEADS, GroupMixAttention
from convattn.mixers.scale_aware_modulation import MultiHeadMixedConv
from convattn.ops.linear import Linear2d
from convattn.ops.local_aggregation import LocalAggregation

BATCH, SIZE, CLASSES, REPEATS = 8, 224, 1000, 5


class PlainMixedConv(nn.Module):
    """A depthwise convolution per head, the heads stacked behind one another's channels."""

    def __init__(self, block: MultiHeadMixedConv):
        super().__init__()
        self.heads = block.heads

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.heads), 1)
        return torch.stack([conv(part) for conv, part in zip(self.heads, parts, strict=True)], 2).flatten(1, 2)


class PlainSelfAttention(nn.Module):
    """Attention that holds its matrix of weights."""

    def __init__(self, block: LocalSelfAttention):
        super().__init__()
        self.num_heads = block.num_heads
        self.query, self.key_value, self.proj = (as_conv(m) for m in (block.query, block.key_value, block.proj))
        self.local_conv = block.local_conv

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.key_value(x).chunk(2, 1)
        q, k, v = (t.flatten(2).unflatten(1, (self.num_heads, -1)) for t in (self.query(x), key, value))
        weights = (q.transpose(2, 3) @ k * q.shape[2] ** -0.5).softmax(3)  # (B, heads, N, N)
        mixed = (v @ weights.transpose(2, 3)).flatten(1, 2).view_as(x)
        return self.proj(mixed + self.local_conv(value))


class PlainGroupMixAttention(nn.Module):
    """Factorised attention by einsum over heads."""

    def __init__(self, block: GroupMixAttention):
        super().__init__()
        self.qkv, self.proj = as_conv(block.qkv), as_conv(block.proj)
        self.aggregator, self.position, self.scale = block.aggregator, block.position, block.scale

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, beside = self.aggregator(*self.qkv(x).chunk(3, 1))
        q, k, v = (t.flatten(2).unflatten(1, (NUM_HEADS, -1)) for t in (query, key, value))
        context = torch.einsum("bhkn,bhvn->bhkv", k.softmax(3), v)
        mixed = self.scale * torch.einsum("bhkn,bhkv->bhvn", q, context).flatten(1, 2).view_as(query)
        return self.proj(torch.cat([mixed + self.position(query, value), beside], 1))


class PlainAggregation(nn.Module):
    """Local aggregation of a network with one head, by unfold."""

    def __init__(self, block: LocalAggregation):
        super().__init__()
        self.kernel_size = block.kernel_size

    def forward(self, value: Tensor, weight: Tensor) -> Tensor:
        batch, channels, height, width = value.shape
        neighbours = F.unfold(value, self.kernel_size, padding=self.kernel_size // 2)
        neighbours = neighbours.view(batch, -1, weight.shape[3], self.kernel_size**2, height, width)
        return (neighbours * weight.transpose(2, 3)).sum(3).view(batch, channels, height, width)


class PlainDeformableConv(nn.Module):
    """Modulated 3×3 deformable convolution by a gather of the four pixels around each tap."""

    def __init__(self, block: DeformableConv2d):
        super().__init__()
        self.offset, self.weight = block.offset, block.weight

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        predicted = self.offset(x)
        dy, dx = predicted[:, :18].unflatten(1, (9, 2)).unbind(2)
        step = torch.arange(3) - 1
        y = dy + torch.arange(height).view(-1, 1) + step.repeat_interleave(3).view(9, 1, 1)
        z = dx + torch.arange(width) + step.repeat(3).view(9, 1, 1)
        flat, seen = x.flatten(2), x.new_zeros(batch, channels, 9, height, width)
        for row in (y.floor(), y.floor() + 1):
            for column in (z.floor(), z.floor() + 1):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                share = (1 - (y - row).abs()) * (1 - (z - column).abs()) * inside
                place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().flatten(1)
                pixels = flat.gather(2, place[:, None].expand(-1, channels, -1))
                seen = seen + pixels.view_as(seen) * share[:, None]
        seen = seen * predicted[:, None, 18:].sigmoid()
        return F.conv2d(seen.flatten(1, 2), self.weight.flatten(1)[:, :, None, None])


PLAIN: dict[type[nn.Module], Callable[..., nn.Module]] = {
    MultiHeadMixedConv: PlainMixedConv,
    LocalSelfAttention: PlainSelfAttention,
    GroupMixAttention: PlainGroupMixAttention,
    LocalAggregation: PlainAggregation,
    DeformableConv2d: PlainDeformableConv,
}


def as_conv(linear: Linear2d) -> nn.Conv2d:
    """The ordinary 1×1 convolution of a linear layer over channels."""
    conv = nn.Conv2d(linear.in_channels, linear.out_channels, 1, bias=linear.bias is not None)
    conv.weight, conv.bias = linear.weight, linear.bias
    return conv


def plain_form(module: nn.Module) -> nn.Module:
    """A model with every block of ours in its plain form, changed in place."""
    for name, child in module.named_children():
        if type(child) in PLAIN:
            child = PLAIN[type(child)](child)
        elif type(child) is Linear2d:
            child = as_conv(child)
        setattr(module, name, child)
        plain_form(child)
    return module


def plain_forms(name: str, model: nn.Module) -> dict[str, nn.Module]:
    """The plain formulations of a model with the same weights."""
    if name.startswith("nextvit"):  # timm's is the authors' code with other names
        peer = create_model(f"timm:{name}", drop_path_rate=0.0)
        peer.load_state_dict(timms_names(to_official(model), peer))
        return {"plain": peer}
    forms = {"plain": plain_form(deepcopy(model))}
    if name.endswith("_das"):
        forms["torchvision"] = create_model(name, sampling="torchvision")
        forms["torchvision"].load_state_dict(model.state_dict())
    return forms


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """A call that runs forward, loss and backward and returns the loss."""

    def step() -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    return step


def processor_seconds(steps: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """The least processor time of three turns, each step once a turn."""
    least = dict.fromkeys(steps, float("inf"))
    for _ in range(3):
        for form, step in steps.items():
            start = time.process_time()
            step()
            least[form] = min(least[form], time.process_time() - start)
    return least


def compare(name: str, *, processor_time: bool) -> None:
    torch.manual_seed(0)
    batch = 2 if processor_time else BATCH
    images, labels = torch.randn(batch, 3, SIZE, SIZE), torch.randint(CLASSES, (batch,))
    model = create_model(name).train()
    for parameter in model.parameters():
        if not parameter.any():  # offsets that start at zero read no pixel between two others
            nn.init.normal_(parameter, std=0.01)
    rows = images.to(memory_format=torch.channels_last)
    forms = {form: plain.train() for form, plain in plain_forms(name, model).items()}
    steps = {"convattn": training_step(model.to(memory_format=torch.channels_last), rows, labels)}
    for form, plain in forms.items():
        steps[form] = training_step(deepcopy(plain), images, labels)
        steps[f"{form}, channels-last"] = training_step(plain.to(memory_format=torch.channels_last), rows, labels)
    losses = {form: float(step()) for form, step in steps.items()}
    if any(abs(loss - losses["convattn"]) > 1e-3 * losses["convattn"] for loss in losses.values()):
        sys.exit(f"{name}: the forms do not compute the same loss: {losses}")
    if processor_time:
        least = processor_seconds(steps)
        for form, seconds in least.items():
            print(f"| {name} | {form} | {1000 * seconds:.0f} | {seconds / least['convattn']:.2f} |", flush=True)
        return
    measured = measure_latency(steps, repeats=REPEATS, warmup=1)
    ours = measured[0].p10_ms
    for row in measured:
        times = f"{row.p10_ms:.0f} | {row.median_ms:.0f} | {row.p90_ms:.0f}"
        print(f"| {name} | {row.name} | {times} | {row.p10_ms / ours:.2f} |", flush=True)


if __name__ == "__main__":
    restart_with_steady_allocator()
    processor_time = "--processor-time" in sys.argv
    torch.set_num_threads(1 if processor_time else 2)
    columns = ["least processor ms"] if processor_time else ["ms a step, 10 % quantile", "median", "90 %"]
    titles = ["model", "form", *columns, "over convattn"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    names = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    for name in names or ("smt_tiny", "groupmixformer_tiny", "nextvit_small", "cotnet_50", "resnet50_das"):
        compare(name, processor_time=processor_time)
