"""Training runs that are killed at random moments and resumed, beside the same runs left alone.

python benchmarks/kill_resume.py             # fifty kills; about ten minutes on two cores
python benchmarks/kill_resume.py --kills 8

The run is the tests' tiny one with everything on that draws random numbers or keeps state (mixup, cutmix, dropout,
stochastic depth, moving average, accumulation 2, clipping), two epochs with a checkpoint after every update. One or two
processes (gloo) train with 0 or 2 loader workers each. SIGKILL strikes one process, or all at once, at a moment drawn
uniformly from the run's length; the run is resumed, and weights, moving average, optimiser, random states and log are
compared bit by bit with the uninterrupted run's.
"""

import argparse
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.sharedctypes import SynchronizedString
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from rich.console import Console
from rich.table import Table

from convattn.atomic import unfinished
from convattn.training.checkpoint import checkpoint_folders
from convattn.training.config import RunConfig
from forked_runs import ForkedRun, train_forked, watch_phase
from tiny_runs import EVERYTHING, assert_same_run, tiny_config, write_pictures

_SHAPES = [(1, 0), (1, 2), (2, 0), (2, 2)]  # processes, loader workers of each


def configured(pictures: Path, folder: Path, processes: int, workers: int) -> RunConfig:
    """Eight images an update, three updates an epoch."""
    parts = {
        **EVERYTHING,
        "data": {**EVERYTHING["data"], "workers": workers, "batch_size": 4 // processes},
        "schedule": dict(epochs=2, warmup_epochs=1),
        "output": dict(checkpoint_updates=1),
    }
    return tiny_config(pictures, folder, **parts)


def kill_once(config: RunConfig, processes: int, seconds: float, draw: random.Random) -> tuple[str, str] | None:
    """Kill a run at a random moment; returns whom, and in which phase the first process was; None if it had ended."""
    phase: SynchronizedString = multiprocessing.get_context("forkserver").Array("c", 32)
    run = ForkedRun(config, processes=processes, prepare=watch_phase, args=[phase])
    while not phase.value:  # it is being forked, and nothing has begun
        time.sleep(0.001)
    time.sleep(draw.uniform(0, seconds))
    ranks = draw.choice([[rank] for rank in range(processes)] + ([list(range(processes))] if processes > 1 else []))
    reached = phase.value.decode()
    run.kill(ranks)
    if all(code != -signal.SIGKILL for code in run.join()):
        return None
    return ("all" if len(ranks) > 1 or processes == 1 else f"rank {ranks[0]}"), reached


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended alike, and nothing unfinished lies about."""
    try:
        assert_same_run(one, other)
        assert not unfinished(other), f"left unfinished: {unfinished(other)}"
    except AssertionError as error:
        print(f"{other}: {error}", file=sys.stderr)
        return False
    return True


def main() -> int:
    """Kill and resume, and print the table; 1 if any run ended otherwise than the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    table = Table("processes", "workers", "killed", "while", "resumed from", "identical", box=None)
    results: Counter[tuple[str, bool]] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        pictures = write_pictures(place / "pictures")
        train_forked(configured(pictures, place / "first", 1, 0))  # the server is up, files are read
        straight, seconds = {}, {}
        for shape in _SHAPES:
            start = time.monotonic()
            straight[shape] = train_forked(
                configured(pictures, place / "straight{}{}".format(*shape), *shape), processes=shape[0]
            )
            seconds[shape] = time.monotonic() - start
        kills, number = 0, 0
        while kills < options.kills:
            shape = _SHAPES[kills % len(_SHAPES)]
            number += 1
            config = configured(pictures, place / f"killed{number}", *shape)
            killed = kill_once(config, shape[0], seconds[shape], draw)
            if killed is None:
                continue
            kills += 1
            whom, phase = killed
            folder = Path(config.output.folder)
            begun, whole = (folder / "config.json").exists(), checkpoint_folders(folder)
            resumed = train_forked(config, processes=shape[0], resume=begun)  # without config.json it is started again
            identical = same(straight[shape], resumed)
            results[phase, identical] += 1
            came_from = whole[0].name.replace("_", " ") if whole else "the beginning"
            table.add_row(*map(str, shape), whom, phase, came_from, "yes" if identical else "NO")
            print(f"{kills}/{options.kills} {phase}: {'identical' if identical else 'DIFFERENT'}", file=sys.stderr)
    console = Console(width=120)
    console.print(table)
    summary = Table("killed while", "kills", "identical", box=None)
    for phase in dict.fromkeys(phase for phase, _ in results):
        good, bad = results[phase, True], results[phase, False]
        summary.add_row(phase, str(good + bad), str(good))
    console.print(summary)
    return int(any(count for (_, identical), count in results.items() if not identical))


if __name__ == "__main__":
    sys.exit(main())
