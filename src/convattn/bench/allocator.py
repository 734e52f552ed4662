"""Keeping the C library's allocator from handing memory back between calls, which doubles some timings."""

import os
import sys

__all__ = ["SETTINGS", "restart_with_steady_allocator"]

# glibc reads these once, when a process starts: large blocks come from the heap and the heap is not trimmed.
SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
    # oneDNN's too: many models in turns use more kernels than the 1024 that it keeps, and would build them every time.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(2**14),
}


def restart_with_steady_allocator() -> None:
    """On Linux, start this script again with `SETTINGS` in its environment, unless they are set; call it first."""
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in SETTINGS.items()):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, os.environ | SETTINGS)
