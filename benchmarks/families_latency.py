"""One variant of each family beside timm's resnet50 and nextvit_small at 224 pixels: batch 1, fp32, two threads.

python benchmarks/families_latency.py            # about two minutes on two cores
"""

from convattn.bench.allocator import restart_with_steady_allocator

if __name__ == "__main__":
    restart_with_steady_allocator()
    from convattn import benchmark

    table = benchmark(
        (
            "smt_tiny",
            "groupmixformer_tiny",
            "nextvit_small",
            "cotnet_50",
            "resnet50_das",
            "timm:nextvit_small",
            "timm:resnet50",
        ),
        forms=("eager", "channels_last", "fused", "prepacked"),
        threads=2,
        repeats=20,
    )
    print(table.to_markdown(reference="timm:resnet50"))
