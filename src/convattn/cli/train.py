"""`convattn train`: run a recipe, with any field of it changed, or go on with a run that was stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from convattn.cli.choices import choose_rest
from convattn.cli.console import notes, print_table, say
from convattn.cli.options.train import AUTO, Options, for_images, run_config
from convattn.json_text import json_text
from convattn.recipes import RECIPES
from convattn.task import Table
from convattn.training.config import RunConfig
from convattn.training.config_json import config_to_json

if TYPE_CHECKING:  # whoever trains imports torch, below; whoever lists recipes needs none
    from convattn.training.probe import Probe

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn train` with these options; returns the exit status, 128 + its number after a signal."""
    if options.list:
        _print_recipes(options.json)
        return 0
    from convattn.training.processes import end_processes

    if options.replay is not None:
        from convattn.training.skipped import replay_skipped

        for line in replay_skipped(options.replay):
            say(line)
        return 0
    if options.resume is None and options.recipe == AUTO:
        options = for_images(options)
    config = run_config(options)
    if options.resume is None:
        config = choose_rest(config, options.given, by_default=options.recipe == AUTO)
    status = _dry_run(config, options) if options.dry_run else _train(config, options)
    end_processes()
    return status


def _train(config: RunConfig, options: Options) -> int:
    from convattn.report.run import write_run_report
    from convattn.training.loop import Interrupted, train
    from convattn.training.processes import is_main_process

    try:
        folder = train(config, resume=options.resume is not None, on_validation=write_run_report)
        if is_main_process():
            _examine(folder)
    except Interrupted as stop:  # it has said how to go on
        return 128 + stop.signal
    if is_main_process():
        say(str(folder))
    return 0


def _examine(folder: Path) -> None:
    """Add to the run's page what the best model says of each validation image."""
    import torch

    from convattn.cli.examine import examine
    from convattn.model_files import open_model
    from convattn.report.run import write_run_report
    from convattn.rooms import room
    from convattn.training.output import stored_config

    run = stored_config(folder)
    model, task = open_model(folder), room(run.task.kind)
    options = task.words.evaluation()
    data = task.open_evaluation(run.data.validation or run.data.source, model, options, run)
    examiner = task.examine(model, data, str(folder), options)
    device = "cuda" if run.loop.device == "auto" and torch.cuda.is_available() else "cpu"
    found = examine(
        model,
        task,
        data,
        examiner,
        options,
        told="validation images",
        batch_size=run.data.batch_size,
        workers=run.data.workers,
        device=device,
    )
    write_run_report(folder, found.findings)


def _dry_run(config: RunConfig, options: Options) -> int:
    from convattn.training.output import check_output
    from convattn.training.places import with_absolute_paths
    from convattn.training.probe import probe
    from convattn.training.processes import is_main_process

    check_output(with_absolute_paths(config), resume=options.resume is not None)
    with notes().status("trying some updates"):
        found = probe(config)
    if is_main_process():
        _print_probe(config, found, options.json)
    return 0


def _print_recipes(as_json: bool) -> None:
    lines = {name: (recipe.__doc__ or "").splitlines()[0] for name, recipe in RECIPES.items()}
    if as_json:
        print(json_text(lines, indent=2))
        return
    print_table(Table("Recipes", ("recipe", "what it is"), tuple(lines.items())))


def _print_probe(config: RunConfig, found: Probe, as_json: bool) -> None:
    if as_json:
        print(json_text({"config": json.loads(config_to_json(config)), **asdict(found), "hours": found.hours}))
        return
    print(f"parameters         {found.parameters:,}")
    print(f"images an epoch    {found.images:,}, {found.updates_per_epoch:,} updates")
    rate = found.images_per_second
    print(
        f"speed              {f'{rate:,.1f}' if rate >= 1 else f'{rate:.2g}'} images/s; "
        f"all {found.updates:,} updates in {found.hours:,.2f} h"
    )
    print(f"memory             {found.memory / 2**30:.2f} GiB at the peak, in each process that trains")
    print(f"disk               {found.disk / 2**30:.2f} GiB at the peak")
    if found.problems:
        print(f"not finite         {found.problems} of the updates tried: loss or gradient; lower optimizer.lr")
    print(config_to_json(config), end="")
