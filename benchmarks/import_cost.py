"""Seconds that `import convattn` takes over `import timm`: the median of several fresh processes, in turn."""

import statistics
import subprocess
import sys
import time

AIM = 0.3


def seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    seconds("convattn")  # files into the page cache
    pairs = [(seconds("timm"), seconds("convattn")) for _ in range(9)]
    over = statistics.median(ours - theirs for theirs, ours in pairs)
    print(f"import timm      {statistics.median(theirs for theirs, _ in pairs):.2f} s")
    print(f"import convattn  {over:+.2f} s over it (aim: at most {AIM} s)")
