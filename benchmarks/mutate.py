"""Every reader of files before mutated ones: crashes, hangs, errors without a name, memory. All have to be 0.

python benchmarks/mutate.py                                  # 1,000 inputs of each of a dozen kinds; some ten minutes
python benchmarks/mutate.py --kind images lists --count 10000 --seed 7
python benchmarks/mutate.py --kind images --replay failures/images-0-123/input.png

Sound files are altered in one to three ways: bits flipped, cut short, runs zeroed, removed, doubled or swapped, fields
of a length made huge, parts of another file spliced in, what texts trip over put in, values of JSON made another type,
size or depth. Each is read by the public function for it, in a forked child with a limit on time and memory. An input
is a function of the seed, the kind and its number. Those that fail are kept for --replay.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from rich.console import Console
from rich.table import Table

from mutated_inputs import KINDS, replay, try_mutations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("failures"), help="folder for the inputs that fail")
    parser.add_argument("--replay", type=Path, help="read one of these again")
    options = parser.parse_args()
    if options.replay is not None:
        print(replay(options.kind[0], options.replay))
        return 0
    torch.set_num_threads(1)
    table = Table(box=None, pad_edge=False)
    table.add_column("kind")
    for title in ("inputs", "read", "refused", "crashes", "hangs", "unnamed errors", "peak MiB", "seconds"):
        table.add_column(title, justify="right")
    failed = 0
    for kind in options.kind:
        start = time.monotonic()
        if KINDS[kind].is_missing:
            print(f"{kind}: skipped, because {KINDS[kind].package} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = try_mutations(kind, range(options.count), options.seed, Path(folder), options.keep)
        counts = [found.counts[name] for name in ("read", "refused", "crash", "hang", "unnamed")]
        peak = f"{found.peak_bytes / 2**20:,.0f}"
        table.add_row(
            kind, f"{sum(counts):,}", *(f"{count:,}" for count in counts), peak, f"{time.monotonic() - start:.0f}"
        )
        for number, why in found.failures[:20]:
            print(f"{kind} {number}: {why}")
        failed += len(found.failures)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
