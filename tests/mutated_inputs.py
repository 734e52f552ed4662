"""Every reader of files before mutated ones: what it makes of them, and what that takes.

Inputs are read in forked children with a limit on time and memory, so that a crash or a hang is seen and not suffered.
What an input is follows from the seed, its kind and its number alone.
"""

import os
import random
import resource
import shutil
import signal
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mutation_kinds import KINDS, Kind

__all__ = ["KINDS", "Outcome", "replay", "try_mutations"]

_CPU_SECONDS = 20  # of one input
_WALL_SECONDS = 300  # of one input, for what waits
_MEMORY = 3 * 2**30  # bytes of addresses beyond what the process has
_PER_CHILD = 500  # inputs
_OUTCOMES = ("read", "refused", "unnamed")


@dataclass
class Outcome:
    """What became of the mutated inputs of one kind."""

    kind: str
    counts: Counter = field(default_factory=Counter)  # read, refused, unnamed, crash, hang
    failures: list[tuple[int, str]] = field(default_factory=list)  # number of the input, what happened
    peak_bytes: int = 0  # of memory that reading one took


def try_mutations(kind: str, numbers: Sequence[int], seed: int, folder: Path, keep: Path | None = None) -> Outcome:
    """Read mutated inputs of one kind.

    Args:
        kind: a name in `KINDS`.
        numbers: which inputs.
        seed: of all of them.
        folder: an empty one to work in.
        keep: where inputs that fail are kept, each in a folder of its own.
    """
    outcome = Outcome(kind)
    samples = folder / "samples"
    _in_child(lambda report: _make(KINDS[kind], samples))
    left = list(numbers)
    while left:
        batch, seen = left[:_PER_CHILD], []
        status = _in_child(partial(_read_all, kind, batch, seed, samples, folder / "work"), seen.append)
        for number, found, peak, why in seen:
            outcome.counts[found] += 1
            outcome.peak_bytes = max(outcome.peak_bytes, peak)
            if found == "unnamed":
                outcome.failures.append((number, why))
        left = left[len(seen) :]
        if len(seen) < len(batch):  # the child has ended at the next one
            number, *left = left
            ended = -os.waitstatus_to_exitcode(status)
            found = "hang" if ended in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGXCPU) else "crash"
            outcome.counts[found] += 1
            outcome.failures.append((number, f"ended by signal {ended}" if ended > 0 else f"ended with {-ended}"))
    for number, _ in outcome.failures:
        if keep is not None:
            _write(KINDS[kind], kind, number, seed, samples, keep / f"{kind}-{seed}-{number}")
    return outcome


def replay(kind: str, input: Path) -> object:
    """Read one input again in this process; raises what its reader raises."""
    return KINDS[kind].read(input)


def _make(kind: Kind, samples: Path) -> None:
    samples.mkdir(parents=True)
    kind.make(samples)


def _write(kind: Kind, name: str, number: int, seed: int, samples: Path, folder: Path) -> Path:
    """The input of this number, in `folder`, and its path there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return kind.write(random.Random(f"{seed}/{name}/{number}"), samples, folder)


def _read_all(name: str, numbers: Sequence[int], seed: int, samples: Path, work: Path, report: Callable) -> None:
    warnings.simplefilter("ignore")
    kind = KINDS[name]
    for number in numbers:
        path = _write(kind, name, number, seed, samples, work)
        before = _reset_peak()
        signal.setitimer(signal.ITIMER_VIRTUAL, _CPU_SECONDS)
        signal.alarm(_WALL_SECONDS)
        found, why = _read(kind, path)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        report((number, found, max(0, _peak() - before), why))


def _read(kind: Kind, path: Path) -> tuple[str, str]:
    try:
        kind.read(path)
    except kind.errors as error:
        text = str(error)
        if len(text.splitlines()) != 1 or path.name not in text:
            return "unnamed", f"{type(error).__name__}: {text[:500]!r}"
        return "refused", ""
    except BaseException as error:
        return "unnamed", f"{type(error).__name__}: {str(error)[:500]!r}"
    return "read", ""


def _in_child(work: Callable[[Callable], None], on_report: Callable[[tuple], None] = lambda found: None) -> int:
    """Runs `work` in a fork that gives what it reports to `on_report`; returns its wait status."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, of which none does anything here
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            _silence()
            limit = _status("VmSize") + _MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with os.fdopen(writer, "wb", buffering=0) as pipe:
                work(lambda found: pipe.write(_packed(found)))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        while head := pipe.read(_HEAD.size):
            number, found, peak, length = _HEAD.unpack(head)
            on_report((number, _OUTCOMES[found], peak, pipe.read(length).decode()))
    return os.waitpid(pid, 0)[1]


_HEAD = struct.Struct("<qbqi")


def _packed(found: tuple[int, str, int, str]) -> bytes:
    number, outcome, peak, why = found
    text = why.encode(errors="backslashreplace")
    return _HEAD.pack(number, _OUTCOMES.index(outcome), peak, len(text)) + text


def _silence() -> None:
    """What libraries write of their own accord is not looked at."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    for number in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(entry: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(f"{entry}:"))
