"""`convattn search`: a network within a measured latency, found, trained again, and held against others."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from convattn.ablation.arms import slug
from convattn.ablation.building import build
from convattn.ablation.costs import Costs, measure_costs
from convattn.ablation.design import Design
from convattn.ablation.plan import Plan, PlannedRun, read_plan, store_plan
from convattn.ablation.planning import plan_comparison
from convattn.ablation.results import read_results
from convattn.ablation.search import finals
from convattn.ablation.search.finals import chosen, finalists, with_latencies
from convattn.ablation.search.halving import Halved, Rung, Training, halve, random_count, rungs_of
from convattn.ablation.search.latency import latencies
from convattn.ablation.search.page import write_search_page
from convattn.ablation.search.results import SearchResults, refusals
from convattn.ablation.search.space import MODEL, Space
from convattn.ablation.search.study import Network, Study, check_meets, draw_networks, open_study
from convattn.ablation.sentence import time_in_words
from convattn.ablation.tables import missing_table, results_tables
from convattn.atomic import check_writable, write_atomically
from convattn.backbones.registry import create_model
from convattn.bench.latency import Latency
from convattn.bench.machine import check_threads, describe_machine, pytorch_threads
from convattn.bench.runtimes import Setting, check_runtime
from convattn.cli.arguments import UsageError
from convattn.cli.comparing import each_warning_once, print_tables, shared_recipe, sweep, tell_open
from convattn.cli.console import notes, plain, say, warn
from convattn.cli.options.search import Options, limit_ms_of, mixers_of, rungs_of_words
from convattn.extras import require
from convattn.json_text import json_text
from convattn.model_configuration import write_configuration
from convattn.rooms import DEFAULT, words_of
from convattn.sizes import image_shape
from convattn.task import Metric
from convattn.training.config import RunConfig
from convattn.training.lock import FolderLock
from convattn.training.loop import Interrupted

__all__ = ["command"]

_STUDY = "study.journal"
_RETRAINED = "retrained"
_KEPT_SEED = 0  # whose run of the network that is kept becomes the model file: chosen before any of them


@dataclass(frozen=True)
class _Task:
    """What is searched for, and by what."""

    options: Options
    output: Path
    recipe: RunConfig
    classes: int
    images: int
    space: Space
    rungs: tuple[Rung, ...]
    setting: Setting

    @property
    def metric(self) -> Metric:
        return words_of(self.recipe.task.kind).metrics[0]

    def times(self, models: Mapping[str, nn.Module]) -> dict[str, Latency]:
        with pytorch_threads(self.options.threads):
            return latencies(models, self.options.runtime, self.setting)

    def time(self, model: nn.Module) -> float:
        """Milliseconds."""
        return self.times({"": model})[""].p10_ms

    def time_beside(self, reference: Network, design: Design) -> float:
        """Milliseconds of a design at the time when the reference was drawn: in turns, the load of now falls out."""
        models = {
            "reference": create_model(MODEL, num_classes=self.classes, **reference.options),
            "design": build(design, num_classes=self.classes),
        }
        found = self.times(models)
        return found["design"].p10_ms / found["reference"].p10_ms * reference.latency_ms

    def asked(self) -> dict[str, Any]:
        """What makes the search what it is, as JSON has it."""
        free = {"data", "output", "seeds", "worth", "dry_run", "json", "device"}
        with pytorch_threads(self.options.threads):
            machine = describe_machine()
        asked = {name: value for name, value in asdict(self.options).items() if name not in free}
        asked |= {"latency": f"{limit_ms_of(self.options):g} ms", "image_size": list(self.setting.shape[1:])}
        asked |= {"images": self.images, "classes": self.classes}
        return dict(json.loads(json.dumps(asked | {"machine": f"{machine['CPU']}, {machine['threads']} threads"})))


def command(options: Options) -> int:
    """Run `convattn search` with these options; returns the exit status, 1 if a run failed."""
    require("optuna", "search")
    task = _task(options)
    if options.dry_run:
        return _show_plan(task)
    check_writable(task.output)
    failed: list[tuple[PlannedRun, str]] = []
    try:
        with each_warning_once():
            with FolderLock(task.output / "claims" / "search"):
                study, networks = _drawn(task)
                halved = _halved(task, study, networks, failed)
                plan = _plan(task, networks, halved)
            swept = sweep(plan.runs(task.output / _RETRAINED), task.output / _RETRAINED)
    except Interrupted as stop:  # a checkpoint was written
        warn("stopped; the same words go on from here")
        return 128 + stop.signal
    failed += swept.failed
    found = _results(task, study, networks, halved, plan)
    _write(task, plan, found)
    _show(found, task.output, options.json)
    return tell_open(failed, swept.elsewhere)


def _task(options: Options) -> _Task:
    rungs = rungs_of(options.networks, rungs_of_words(options))
    try:
        check_runtime(options.runtime)
        check_threads(options.threads)
    except ValueError as error:
        raise UsageError(str(error)) from None
    Space(mixers_of(options))  # an unknown mixer is told before the images are looked at
    with warnings.catch_warnings(action="ignore"):  # told by the runs
        recipe, images = shared_recipe(options)
    if recipe.task.kind != DEFAULT:
        raise UsageError(
            f"--data {options.data}: the search composes networks for {DEFAULT}, and these images are for "
            f"{recipe.task.kind}; compare designs for it with convattn ablate"
        )
    channels, height, width = image_shape(recipe.data.image_size or 224)
    setting = Setting(image_size=(channels, height, width))
    output = options.output or Path("searches") / slug(f"{options.runtime}-{options.latency}")
    space = Space(mixers_of(options), min(height, width))
    return _Task(options, output, recipe, len(images.classes), len(images), space, rungs, setting)  # type: ignore[attr-defined]


def _drawn(task: _Task) -> tuple[Study, list[Network]]:
    """The study, a new one only of a latency that something meets, and the networks to train."""
    path, limit_ms = task.output / _STUDY, limit_ms_of(task.options)
    if not path.exists():
        with notes().status("measuring the smallest networks"):
            check_meets(task.space, limit_ms, task.classes, task.time, task.options.runtime)
    study = open_study(path, task.asked(), maximise=task.metric.greater_is_better)
    with notes().status("drawing networks") as status:
        return study, draw_networks(
            study,
            task.space,
            max(task.rungs[0].count, random_count(task.rungs)),
            limit_ms,
            seed=task.options.seed,
            classes=task.classes,
            setting=task.setting,
            measure=task.time,
            note=lambda line: status.update(plain(line)),
        )


def _halved(task: _Task, study: Study, networks: Sequence[Network], failed: list[tuple[PlannedRun, str]]) -> Halved:
    costs = _costs_of_hand_made(task)

    def trained(runs: list[PlannedRun]) -> None:
        known = {run.folder for run, _ in failed}
        failed.extend(pair for pair in sweep(runs, task.output).failed if pair[0].folder not in known)

    training = Training(task.recipe, costs.updates_per_epoch, costs.update_seconds, task.output, trained)
    return halve(study, networks, task.rungs, training, task.metric)


def _costs_of_hand_made(task: _Task) -> Costs:
    """What an update takes here: that of the hand-made network stands for all."""
    model = replace(task.recipe.model, name=MODEL, options=task.space.hand_made(), plug_ins=())
    with warnings.catch_warnings(action="ignore"), notes().status("measuring an update"):  # told by the runs
        return measure_costs({"": replace(task.recipe, model=model)})[""]


def _plan(task: _Task, networks: Sequence[Network], halved: Halved) -> Plan:
    """How the best are trained again; made once."""
    output, options, limit = task.output / _RETRAINED, task.options, limit_ms_of(task.options)
    plan = read_plan(output)
    if plan is None:
        with warnings.catch_warnings(action="ignore"), notes().status("planning") as status:  # told by the runs

            def note(line: str) -> None:
                status.update(plain(line))

            def measure(design: Design) -> float:
                best = halved.ranking(task.metric)[0]
                return task.time_beside(next(n for n in networks if n.number == best), design)

            comparison = finalists(
                task.space,
                networks,
                halved,
                task.metric,
                limit,
                measure,
                title=f"Networks within {limit:g} ms in {options.runtime}",
                classes=task.classes,
                note=note,
            )
            plan = plan_comparison(
                comparison,
                task.recipe,
                num_classes=task.classes,
                note=note,
                seeds=options.seeds,
                budgets=tuple(options.budgets.split(",")),
            )
            note("timing all in turns")
            models = {design.name: build(design, num_classes=task.classes) for design in plan.comparison.buildable}
            plan = with_latencies(plan, task.times(models))
    plan = replace(plan, seeds=max(plan.seeds, options.seeds))
    store_plan(plan, output)
    return replace(plan, recipe=replace(plan.recipe, data=replace(plan.recipe.data, source=task.recipe.data.source)))


def _results(task: _Task, study: Study, networks: Sequence[Network], halved: Halved, plan: Plan) -> SearchResults:
    output, options = task.output / _RETRAINED, task.options
    kept, held_out = chosen(plan, output, task.metric) or (None, {})
    threads = f", {options.threads} threads" if options.threads else ""
    return SearchResults(
        read_results(plan, output, options.worth),
        halved,
        {network.number: network for network in networks},
        len(study.trials),
        refusals(study),
        task.space.size(),
        limit_ms_of(options),
        f"{options.runtime}{threads}, one image of {task.setting.size_text} px",
        kept,
        held_out,
    )


def _write(task: _Task, plan: Plan, found: SearchResults) -> None:
    output = task.output
    if found.chosen is not None:
        run = plan.run(output / _RETRAINED, found.chosen, plan.budgets[0], _KEPT_SEED)
        write_atomically(output / "model.safetensors", (run.folder / "last.safetensors").read_bytes())
        write_configuration(output / "model.json", found.chosen.model, found.chosen.options)
    write_atomically(output / "results.json", (json_text(found.as_data(), indent=2) + "\n").encode())
    write_search_page(output / "report.html", found)


def _show_plan(task: _Task) -> int:
    costs = _costs_of_hand_made(task)
    an_epoch = costs.updates_per_epoch * costs.update_seconds
    halving = sum(rung.count * rung.epochs for rung in task.rungs)
    designs = 5 + len(finals.FAMILIES)  # three found, one at random, one made by hand
    schedule = task.recipe.schedule.length(costs.updates_per_epoch) / costs.updates_per_epoch
    again = designs * task.options.seeds * schedule * len(task.options.budgets.split(","))
    parts = {"successive halving": halving, "random search": halving, "training again": again}
    if task.options.json:
        print(json_text({"space": task.space.size(), "an_epoch_seconds": an_epoch, "epochs": parts}, indent=2))
        return 0
    say(f"about {task.space.size()} networks; rungs " + ", ".join(f"{r.count} x {r.epochs}" for r in task.rungs))
    for part, epochs in parts.items():
        say(f"{part}: {epochs:g} epochs, about {time_in_words(epochs * an_epoch)} here, validation not counted")
    return 0


def _show(found: SearchResults, output: Path, as_json: bool) -> None:
    if as_json:
        print(json_text(found.as_data(), indent=2))
        return
    print_tables(*found.tables(), *results_tables(found.retrained), missing_table(found.retrained.plan))
    for sentence in found.sentences():
        say(sentence)
    for sentence in (row.sentence for rows in found.retrained.rows.values() for row in rows if row.sentence):
        say(sentence)
    say(f"front: {', '.join(found.front())}")
    say(str(output / "report.html"))
