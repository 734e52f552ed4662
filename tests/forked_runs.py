"""Training runs in processes of their own that can be killed.

They are forked from a server that has imported everything, so that a start takes milliseconds and not seconds; several
processes find one another as those of torchrun do, and when one is lost the others are ended as torchrun ends them.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from torch.distributed import TCPStore
from torch.distributed.tensor import DTensor, Shard

from convattn.training import signals
from convattn.training.config import RunConfig
from convattn.training.loop import Interrupted, train
from convattn.training.run import Run

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("convattn.cli.train", "convattn.training.loop", "convattn.recipes", "convattn.report.write"),
        *("convattn.classification.room", "convattn.segmentation.room", "accelerate", "PIL.PngImagePlugin"),
        *("captum.attr", "torch.distributed.tensor"),  # for the pictures at a run's end; for this file
    ]
)

_TIMEOUT = 300.0  # seconds until a run counts as hanging
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes behind a stop, in which all agree
_GRACE = 30.0  # seconds that survivors of a lost process have


@dataclass(frozen=True)
class Kill:
    """A place at which a process ends itself by SIGKILL."""

    where: str  # a function as module:name
    call: int = 1  # how manieth call of it
    after: bool = False  # once it has returned, instead of before
    rank: int = 0


class ForkedRun:
    """A run under way.

    Args:
        config: the run.
        processes: how many train together.
        resume: as of `train`.
        prepare: called first in every process, with its rank.
        args: what `prepare` gets beside.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        processes: int = 1,
        resume: bool = False,
        prepare: Callable[..., object] | None = None,
        args: Sequence[Any] = (),
    ):
        self.log = Path(f"{config.output.folder}.said")
        self._store = meeting_point() if processes > 1 else None
        environments = [{}] if self._store is None else ranks(processes, self._store.port)
        common = (config, resume, self.log, prepare, tuple(args))
        self.processes: list[BaseProcess] = [
            _context.Process(target=_run, args=(rank, environment, *common))
            for rank, environment in enumerate(environments)
        ]
        for process in self.processes:
            process.start()

    def join(self) -> list[int | None]:
        """Wait until it ends; returns the exit codes in order of the ranks, negative for a signal."""
        deadline = time.monotonic() + _TIMEOUT
        while any(process.is_alive() for process in self.processes) and time.monotonic() < deadline:
            if any(process.exitcode not in (None, 0, *_STOPPED) for process in self.processes):  # one is lost
                self.stop()
            time.sleep(0.01)
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
            process.join()
        assert not hanging, f"the run hangs: {self.said()}"
        return [process.exitcode for process in self.processes]

    def stop(self) -> None:
        """End all that still run: kindly, and by force later."""
        for process in self.processes:
            if process.is_alive():
                process.terminate()
        deadline = time.monotonic() + _GRACE
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def kill(self, ranks: Sequence[int]) -> None:
        """SIGKILL now."""
        for rank in ranks:
            self.processes[rank].kill()

    def said(self) -> str:
        """What all runs into this folder have printed so far."""
        return self.log.read_text() if self.log.exists() else ""


@dataclass(frozen=True)
class Finished:
    """A program that has ended."""

    returncode: int | None  # negative for a signal
    stdout: str
    stderr: str


class ForkedProgram:
    """`python -c CODE ARG…` under way, without the seconds that imports take.

    Args:
        code: the program; `sys.argv[1:]` is `args`.
        args: words.
        environment: variables beside those of this process.
    """

    def __init__(self, code: str, *args: object, **environment: str):
        words, pipes = [str(arg) for arg in args], [_context.Pipe(duplex=False) for _ in range(2)]
        writers = [writer for _, writer in pipes]
        self._process = _context.Process(target=_program, args=(code, words, environment, writers))
        self._process.start()
        for writer in writers:
            writer.close()
        self._pool = ThreadPoolExecutor(len(pipes))
        self._said = [self._pool.submit(_read, reader) for reader, _ in pipes]

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def wait(self) -> None:
        """Wait until it ends, but not for what it left behind to."""
        self._process.join(_TIMEOUT)

    def join(self) -> Finished:
        """Wait until it ends, and all that it has started."""
        self._process.join(_TIMEOUT)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        with self._pool:
            return Finished(self._process.exitcode, *(said.result() for said in self._said))


def meeting_point() -> TCPStore:
    """Where processes find one another, as torchrun keeps it; its port is never anybody else's."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def ranks(processes: int, port: int) -> list[dict[str, str]]:
    """What torchrun tells each of so many processes that meet at this port."""
    common = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def train_forked(config: RunConfig, *, processes: int = 1, resume: bool = False) -> Path:
    """Train to the end; returns the run folder."""
    run = ForkedRun(config, processes=processes, resume=resume)
    assert run.join() == [0] * processes, run.said()
    return Path(config.output.folder)


def train_killed(config: RunConfig, kill: Kill, *, processes: int = 1, resume: bool = False) -> ForkedRun:
    """Train until a process kills itself; returns the run behind that."""
    run = ForkedRun(config, processes=processes, resume=resume, prepare=arm, args=[kill])
    codes = run.join()
    assert codes[kill.rank] == -signal.SIGKILL, f"{kill} was not reached: {codes} {run.said()}"
    return run


def lose_a_rank(folder: str, *words: str) -> None:
    """One rank of torchrun runs `convattn` with these words; in the first attempt the second kills itself."""
    from convattn.cli.main import main

    attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], int(os.environ["RANK"])
    mark = Path(folder, f"attempt_{attempt}_rank_{rank}")
    mark.with_suffix(".began").touch()
    if attempt == "0":
        arm(rank, Kill("accelerate.optimizer:AcceleratedOptimizer.step", 5, rank=1), mark.with_suffix(".killed"))
    assert main(list(words)) == 0
    assert not torch.distributed.is_initialized()  # the group has been left: NCCL warns of one that was not
    mark.with_suffix(".done").touch()


def arm(rank: int, kill: Kill, mark: Path | None = None) -> None:
    """Let a process of this rank kill itself as `kill` says; `mark` is made right before."""
    if rank == kill.rank:
        calls = 0

        def count(at: bool) -> None:
            nonlocal calls
            calls += at is kill.after
            if calls == kill.call:
                if mark is not None:
                    mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        around(kill.where, count)


def signalled(where: str, call: int, number: int) -> str:
    """A program for `convattn train` that signals itself when so many calls of the function `where` have returned."""
    return f"""
import itertools, signal, sys
from convattn.cli.main import main
from forked_runs import around
calls = itertools.count(1)
around({where!r}, lambda after: after and next(calls) == {call} and signal.raise_signal({int(number)}))
sys.exit(main(["train", *sys.argv[1:]]))
"""


def signal_group(rank: int, where: str, call: int, *numbers: int) -> None:
    """Let a process signal its group, its workers too, at a call of a function: as `timeout` or a scheduler does."""
    os.setsid()
    signals.time = SimpleNamespace(monotonic=lambda: 0.0)  # type: ignore[assignment]  # all come within a second
    calls = 0

    def count(after: bool) -> None:
        nonlocal calls
        calls += after
        if after and calls == call:
            group, sender = os.getpgid(0), os.fork()  # from outside: a worker heeds what its main process sends
            if not sender:
                os.setsid()
                for number in numbers:
                    os.killpg(group, number)
                os._exit(0)
            os.waitpid(sender, 0)

    around(where, count)


def expect_dtensors(rank: int) -> None:
    """Let a run fail when it saves parameters that are not spread over the processes."""
    save = Run.save

    def checked(run: Run) -> None:
        models = [run.bare_model] + ([] if run.ema is None else [run.ema.module])
        for model in models:
            for name, parameter in model.named_parameters():
                assert isinstance(parameter, DTensor) and parameter.placements == (Shard(0),), name
        save(run)

    Run.save = checked  # type: ignore[method-assign]


_PHASES = {
    "convattn.training.loop:Run": "building",
    "convattn.training.loop:_Loop.train": "between",
    "convattn.training.loop:_Loop._updates": "loading images",
    "convattn.training.loop:update": "forward and backward",
    "accelerate.optimizer:AcceleratedOptimizer.step": "optimiser",
    "convattn.training.build:ModelEmaV3.update": "moving average",
    "convattn.classification.task:Classification.meter": "validation",
    "convattn.training.loop:save_model": "writing a model file",
    "convattn.training.run:Run.save": "writing a checkpoint",
    "convattn.training.loop:_Loop.__exit__": "ending",
}


def watch_phase(rank: int, phase: Any) -> None:
    """Let the first process keep in `phase`, a shared array of characters, what it is doing."""
    if rank:
        return
    phase.value = b"starting"
    for where, name in _PHASES.items():
        _follow(where, name.encode(), phase)


def _follow(where: str, name: bytes, phase: Any) -> None:
    before: list[bytes] = []

    def hook(after: bool) -> None:
        if not after:
            before.append(phase.value)
        phase.value = before.pop() if after else name

    around(where, hook)


def around(where: str, hook: Callable[[bool], object]) -> None:
    """Call `hook` with False before and with True after each call of the function `module:name`."""
    module, path = where.split(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    def hooked(*args: Any, **keywords: Any) -> Any:
        hook(False)
        result = function(*args, **keywords)
        hook(True)
        return result

    setattr(owner, name, hooked)


def _run(
    rank: int,
    environment: dict[str, str],
    config: RunConfig,
    resume: bool,
    log: Path,
    prepare: Callable[..., object] | None,
    args: tuple,
) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # loader workers are then children of this process
    os.environ.update(environment)
    with open(log, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        if prepare is not None:
            prepare(rank, *args)
        try:
            train(config, resume=resume, console=Console(file=sys.stderr, width=500))
        except Interrupted as stop:
            sys.exit(128 + stop.signal)
    if environment:
        torch.distributed.destroy_process_group()


def _read(connection: Connection) -> str:
    """All that is written to the other end of a pipe."""
    with connection, open(connection.fileno(), closefd=False) as file:
        return file.read()


def _program(code: str, args: list[str], environment: dict[str, str], writers: list[Connection]) -> None:
    for stream, writer in enumerate(writers, start=1):
        os.dup2(writer.fileno(), stream)
        writer.close()
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests started in the background ignore
    os.environ.update(environment)
    tempfile.tempdir = None  # it is asked for anew
    sys.argv = ["-c", *args]
    exec(code, {"__name__": "__main__"})
