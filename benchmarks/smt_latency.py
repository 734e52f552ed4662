"""SMT-T beside timm's resnet50 and swin_tiny at 224 pixels: batch 1 and 8, fp32 and bf16, in every form.

python benchmarks/smt_latency.py            # about fifteen minutes on two cores
python benchmarks/smt_latency.py --quick    # fp32, batch 1, no compiled form: one minute
"""

import sys

from convattn.bench.allocator import restart_with_steady_allocator

if __name__ == "__main__":
    restart_with_steady_allocator()
    from convattn import benchmark

    quick = "--quick" in sys.argv
    models = ("smt_tiny", "timm:resnet50", "timm:swin_tiny_patch4_window7_224")
    forms = ("eager", "channels_last", "fused", "prepacked", "onnxruntime") + (() if quick else ("compiled",))
    for precision in ("fp32",) if quick else ("fp32", "bf16"):
        for batch_size in (1,) if quick else (1, 8):
            table = benchmark(
                models,
                forms=forms,
                batch_size=batch_size,
                precision=precision,
                threads=2,
                repeats=30 if batch_size == 1 else 10,
            )
            print(table.to_markdown(reference="timm:resnet50"), end="\n\n", flush=True)
