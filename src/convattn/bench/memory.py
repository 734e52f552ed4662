"""How much memory a model needs while it runs: measured in a process of its own.

A process that has done other things says nothing: what was freed stays mapped, and is reused. So a helper process
imports the libraries once and forks a child for every measurement. The child prepares the model twice. The first time
loads whatever libraries and kernels the runtime wants; then all is freed, and what is resident is the floor. The second
time is measured: the highest resident size (VmHWM) during two calls, less the floor. That is the weights as the runtime
holds them, and what a call needs besides. Every block of 64 KiB or more is taken from the system and given back to it,
so that freed memory does not count.

Linux only, where `/proc/self/clear_refs` resets the highest resident size; elsewhere there is no figure.
"""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch

from convattn.bench.allocator import SETTINGS
from convattn.bench.runtimes import PYTORCH, Call, Setting, file_call, pytorch_calls
from convattn.model_files import open_model

__all__ = ["MemoryMeter", "cuda_peak_bytes", "serve"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt
_OWN_MAPPING = 64 * 1024  # bytes
_START = "from convattn.bench.memory import serve; serve()"


class MemoryMeter:
    """A helper process that measures; use it as a context manager."""

    def __enter__(self) -> Self:
        self.process: subprocess.Popen[str] | None = None
        if _can_reset_peak():
            environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # a child that measures too
            self.process.communicate()

    def peak_bytes(
        self, model: str, runtime: str, setting: Setting, *, layout: str = "", path: Path | None = None
    ) -> int | None:
        """Bytes above the floor while the model runs; None where the system or the runtime gives no figure.

        Args:
            model: its name, or where it is.
            runtime: one of `runtime_names()`. `compile` has no figure: its compiler would run once more.
            setting: what to run it on.
            layout: of the images, for PyTorch's runtimes.
            path: the file to run, for the others.
        """
        if self.process is None or runtime == "compile":
            return None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = dict(
            model=model,
            runtime=runtime,
            setting=asdict(setting),
            layout=layout,
            path=str(path or ""),
            threads=torch.get_num_threads(),
        )
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            return None
        return json.loads(answer) if answer else None


def cuda_peak_bytes(call: Call, parameter_bytes: int) -> int:
    """A model's parameters, and the most that tensors take on the GPU beside what is there before a call."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return parameter_bytes + torch.cuda.max_memory_allocated() - before


def serve() -> None:
    """Answer each request on standard input, a JSON object a line, with a number of bytes or null."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                print(json.dumps(_measure(json.loads(line))), file=answers, flush=True)
                status = 0
            finally:
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            print("null", file=answers, flush=True)


def _measure(request: dict[str, Any]) -> int:
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_THRESHOLD, _OWN_MAPPING), (_M_TRIM_THRESHOLD, 0), (_M_TOP_PAD, 0)):
        libc.mallopt(option, value)
    torch.set_num_threads(request["threads"])
    prepare = _preparation(request)
    call = prepare()
    call()
    del call
    floor = _settle(libc)
    call = prepare()
    _settle(libc)
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        call()
    return _status("VmHWM") - floor


def _preparation(request: dict[str, Any]) -> Callable[[], Call]:
    setting, runtime = Setting(**request["setting"]), request["runtime"]
    if runtime not in PYTORCH:
        return lambda: file_call(Path(request["path"]), runtime, setting)
    return lambda: pytorch_calls(open_model(request["model"], pretrained=False), runtime, setting)[request["layout"]]


def _settle(libc: ctypes.CDLL) -> int:
    """Give back what can be given back; returns the bytes that are resident then."""
    gc.collect()
    libc.malloc_trim(0)
    return _status("VmRSS")


def _status(key: str) -> int:
    """An entry of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _can_reset_peak() -> bool:
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # some sandboxes
        return False
    return True
