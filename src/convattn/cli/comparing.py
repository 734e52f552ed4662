"""What commands that compare designs share: the recipe of all runs, the bar over them, tables."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from convattn.ablation.plan import PlannedRun
from convattn.ablation.results import TEST
from convattn.ablation.sweep import Sweep, run_sweep
from convattn.cli.arguments import UsageError
from convattn.cli.choices import choose_recipe, tell, with_scaled_warmup
from convattn.cli.console import print_table, progress_bar, say, warn
from convattn.cli.options import ablate, search
from convattn.data.splits import find_split
from convattn.nearest import nearest
from convattn.recipes import RECIPES
from convattn.rooms import room
from convattn.task import Dataset, Table
from convattn.training.config import RunConfig
from convattn.training.places import with_absolute_paths

__all__ = ["each_warning_once", "print_tables", "shared_recipe", "sweep", "tell_open"]


def shared_recipe(options: ablate.Options | search.Options) -> tuple[RunConfig, Dataset]:
    """The run that all share, from scratch, and the training images; UsageError for an unknown recipe or a pipe."""
    if options.recipe is None:
        start = RunConfig()
        config, line = choose_recipe(replace(start, data=replace(start.data, source=str(options.data))))
        tell(line)
    elif options.recipe in RECIPES:
        config = replace(RECIPES[options.recipe](), recipe=options.recipe)
    else:
        raise UsageError(f"unknown recipe {options.recipe!r}; {nearest(options.recipe, RECIPES)}")
    given: dict[str, Any] = {
        "source": str(options.data),
        "batch_size": options.batch_size,
        "image_size": options.image_size,
    }
    if options.hold_out is not None:
        given["validation"] = str(options.hold_out)
        given["evaluations"] = _tested(str(options.data))
    config = replace(config, data=replace(config.data, **{k: v for k, v in given.items() if v is not None}))
    if options.epochs is not None:
        config, _ = with_scaled_warmup(config, str(options.epochs), ())
        schedule = replace(config.schedule, epochs=options.epochs, updates=None)
        config = replace(config, schedule=schedule)
    model = replace(config.model, pretrained=False, pretrained_path=None, head_rows=None)
    loop = replace(config.loop, freeze_epochs=0, early_stopping=None, device=options.device)
    config = replace(config, model=model, loop=loop, optimizer=replace(config.optimizer, layer_decay=None))
    config = with_absolute_paths(config)
    task = room(config.task.kind)
    train, _ = task.open_training(config)
    if train is None:
        raise UsageError(f"--data {options.data}: a pipe cannot be compared on; give a folder")
    config, lines = task.fitted(config, train)
    for line in lines:
        tell(line)
    return config, train


@contextmanager
def each_warning_once() -> Iterator[None]:
    """What every run would say of the same images is said by the first."""
    with warnings.catch_warnings():
        show, told = warnings.showwarning, set[str]()

        def once(message: Warning | str, *where: Any, **how: Any) -> None:
            if str(message) not in told:
                told.add(str(message))
                show(message, *where, **how)

        warnings.showwarning = once
        yield


def sweep(runs: list[PlannedRun], output: Path) -> Sweep:
    """Train what is open, with a bar."""
    done: dict[Path, float] = {}
    with progress_bar() as bar:
        task = bar.add_task("training", total=sum(run.seconds for run in runs))

        def started(run: PlannedRun) -> None:
            bar.update(task, description=f"{run.design}, equal {run.budget}, seed {run.seed}")

        def progress(run: PlannedRun, step: int) -> None:
            done[run.folder] = run.seconds * min(1.0, step / run.updates)
            bar.update(task, completed=sum(done.values()))

        return run_sweep(runs, output, started=started, progress=progress)


def tell_open(failed: Sequence[tuple[PlannedRun, str]], elsewhere: Sequence[PlannedRun]) -> int:
    """Say which runs failed, and whether others train some; returns the exit status."""
    for run, reason in failed:
        warn(f"{run.folder}: {reason}")
    if elsewhere:
        warn(f"{len(elsewhere)} runs are under way in other processes; run the same words again for all")
    return 1 if failed else 0


def print_tables(*tables: Table) -> None:
    """Those that have rows, with their titles."""
    for table in tables:
        if table.rows:
            say(table.title)
            print_table(table)
            print()


def _tested(source: str) -> tuple[str, ...]:
    """The images of the validation or test split, which judge where others choose; none where there is no such."""
    if Path(source).is_dir():
        for split in ("test", "val"):
            found = find_split(Path(source), split)
            if found is not None and len(found.tars) < 2:
                return (f"{TEST}={found.path.resolve()}",)
    return ()
