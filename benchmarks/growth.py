"""How mixers grow with the tokens, beside plain softmax attention: times, multiply-adds, and fitted exponents.

python benchmarks/growth.py            # a minute on two cores

Whole networks: convattn bench NAME --runtime fused --growth
"""

from convattn.bench.allocator import restart_with_steady_allocator

CHANNELS, HEADS = 80, 8
SIDES = (14, 28, 56, 112)  # positions along a side of the map


def main() -> None:
    from functools import partial

    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    import convattn
    from convattn.bench.growth import fit_exponent
    from convattn.bench.latency import measure_latency
    from convattn.mixers.deformable_gate import DeformableGate
    from convattn.mixers.group_mix_attention import GroupMixAttention

    class SoftmaxAttention(nn.Module):
        """softmax(q kᵀ / √d) v over all positions of a map."""

        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            q, k, v = self.qkv(tokens).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.proj(mixed).transpose(1, 2).reshape(x.shape)

    torch.set_num_threads(2)
    mixers = {
        "group_mix_attention": GroupMixAttention(CHANNELS),
        "deformable_gate": DeformableGate(CHANNELS),
        "softmax attention": SoftmaxAttention(),
    }
    print(f"{CHANNELS} channels, batch 1, fp32, {torch.get_num_threads()} threads, fused")
    for name, mixer in mixers.items():
        fused = convattn.fuse(nn.Sequential(mixer.eval()))
        maps = [torch.randn(1, CHANNELS, side, side).to(memory_format=torch.channels_last) for side in SIDES]
        with torch.inference_mode():
            rows = measure_latency({str(x.shape[-1]): partial(fused, x) for x in maps}, repeats=9, warmup=2)
        tokens, times = [side**2 for side in SIDES], [row.median_ms for row in rows]
        macs = [convattn.count(mixer, tuple(x.shape[1:])).macs for x in maps]
        time, counted = fit_exponent(tokens, times), fit_exponent(tokens, macs)
        shown = ", ".join(f"{one}: {ms:.2f} ms" for one, ms in zip(tokens, times, strict=True))
        print(f"{name:20} {shown}; time ~ tokens^({time.value:.2f} ± {time.standard_error:.2f})", end="")
        print(f", multiply-adds ~ tokens^{counted.value:.2f}")


if __name__ == "__main__":
    restart_with_steady_allocator()
    main()
