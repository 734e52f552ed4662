"""How mixers grow with the tokens, beside plain softmax attention: times, multiply-adds, and fitted exponents.

Processor time of one thread, which other work on the machine hardly changes.

python benchmarks/growth.py            # a minute on two cores

Whole networks: convattn bench NAME --runtime fused --growth
"""

import time
from collections.abc import Callable

from convattn.bench.allocator import restart_with_steady_allocator

CHANNELS, HEADS = 80, 8
SIDES = (28, 40, 56, 80, 112)  # positions along a side of the map


def milliseconds(call: Callable[[], object]) -> float:
    """Processor time of a call, the least of six: what else disturbs a call of a millisecond only adds to it."""
    times = []
    for _ in range(6):
        start = time.process_time()
        call()
        times.append(1000 * (time.process_time() - start))
    return min(times)


def main() -> None:
    from functools import partial

    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    import convattn
    from convattn.bench.growth import fit_exponent
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

    torch.set_num_threads(1)
    mixers = {
        "group_mix_attention": GroupMixAttention(CHANNELS),
        "deformable_gate": DeformableGate(CHANNELS),
        "softmax attention": SoftmaxAttention(),
    }
    print(f"{CHANNELS} channels, batch 1, fp32, fused, processor time of one thread")
    for name, mixer in mixers.items():
        fused = convattn.fuse(nn.Sequential(mixer.eval()))
        maps = [torch.randn(1, CHANNELS, side, side).to(memory_format=torch.channels_last) for side in SIDES]
        with torch.inference_mode():
            times = [milliseconds(partial(fused, x)) for x in maps]
        tokens = [side**2 for side in SIDES]
        macs = [convattn.count(mixer, tuple(x.shape[1:])).macs for x in maps]
        spent, counted = fit_exponent(tokens, times), fit_exponent(tokens, macs)
        shown = ", ".join(f"{one}: {ms:.2f} ms" for one, ms in zip(tokens, times, strict=True))
        print(f"{name:20} {shown}; time ~ tokens^({spent.value:.2f} ± {spent.standard_error:.2f})", end="")
        print(f", multiply-adds ~ tokens^{counted.value:.2f}")


if __name__ == "__main__":
    restart_with_steady_allocator()
    main()
