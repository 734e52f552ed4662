"""Calling a form of a model as a server does: by several threads at once."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

from toys import relative_error

_THREADS = 4


def worst_in_threads(run: Callable[[Tensor], Tensor], images: Sequence[Tensor], calls: int = 20) -> float:
    """The largest relative error of what four threads get, each with an input of its own, against one thread's."""
    with torch.inference_mode():
        want = [run(batch) for batch in images]
    start = Barrier(_THREADS)

    def call(thread: int) -> float:
        index = thread % len(images)
        start.wait(60)
        with torch.inference_mode():
            outputs = [run(images[index]) for _ in range(calls)]
        return max(relative_error(output, want[index]) for output in outputs)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # what two threads can do to one another, they do soon
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            return max(pool.map(call, range(_THREADS)))
    finally:
        sys.setswitchinterval(interval)
