"""`convattn ablate`: designs beside one another, fairly."""

import json
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from convattn.ablation.arms import on_base, slug, with_mixers, with_values
from convattn.ablation.design import Comparison
from convattn.ablation.page import write_page
from convattn.ablation.plan import Plan, read_plan, store_plan
from convattn.ablation.planning import plan_comparison
from convattn.ablation.presets import PRESETS, preset
from convattn.ablation.results import Results, read_results
from convattn.ablation.sentence import time_in_words
from convattn.ablation.tables import missing_table, plan_table, results_tables
from convattn.ablation.tuning import tuned
from convattn.atomic import check_writable, write_atomically
from convattn.cli.arguments import UsageError, words_of
from convattn.cli.comparing import each_warning_once, print_tables, shared_recipe, sweep, tell_open
from convattn.cli.console import notes, plain, print_table, say, warn
from convattn.cli.options.ablate import Options, budgets_of, controls_of, factors_of, key_and_values, options_of
from convattn.config_errors import RunFolderError
from convattn.json_text import json_text
from convattn.task import Table
from convattn.training.config import RunConfig
from convattn.training.lock import FolderLock
from convattn.training.loop import Interrupted
from convattn.training.places import with_absolute_paths

__all__ = ["command"]

_WAIT = 2.0  # seconds between two looks at another process's plan


def command(options: Options) -> int:
    """Run `convattn ablate` with these options; returns the exit status, 1 if a run failed."""
    if options.list:
        _list(options.json)
        return 0
    subject = options.vary.partition("=")[0] or options.mixers
    output = options.output or Path("ablations") / slug(options.preset or f"{options.base or 'own'}-{subject}")
    if options.dry_run:
        return _show_plan(read_plan(output) or _new_plan(options), options.json)
    check_writable(output)
    plan = _plan_in(output, options)
    try:
        with each_warning_once():
            if plan.tries:
                trials = sweep(plan.trials(output), output)
                if trials.elsewhere:
                    warn(f"{len(trials.elsewhere)} trials are under way in other processes; run the same words again")
                    return 0
                plan = tuned(plan, output)
            swept = sweep(plan.runs(output), output)
    except Interrupted as stop:  # a checkpoint was written
        warn("stopped; the same words go on from here")
        return 128 + stop.signal
    results = read_results(plan, output, options.worth)
    write_atomically(output / "results.json", (json_text(results.as_data(), indent=2) + "\n").encode())
    write_page(output / "report.html", results)
    _show(results, output, options.json)
    return tell_open(swept.failed, swept.elsewhere)


def _plan_in(output: Path, options: Options) -> Plan:
    """The plan in the folder, if it is of the same words; a new one, which one process makes for all."""
    while True:
        plan = read_plan(output)
        if plan is not None:
            return _continued(plan, output, options)
        try:
            with FolderLock(output / "claims" / "plan"):
                if read_plan(output) is None:
                    store_plan(_new_plan(options), output)
        except RunFolderError:  # another process is at it
            time.sleep(_WAIT)


def _continued(plan: Plan, output: Path, options: Options) -> Plan:
    asked = _asked(options)
    other = [name for name, value in asked.items() if plan.asked.get(name) != value]
    if other:
        was = ", ".join(f"--{name.replace('_', '-')} {plan.asked.get(name)}" for name in other)
        raise UsageError(f"{output}: holds another comparison ({was}); choose another --output")
    source = with_absolute_paths(replace(plan.recipe, data=replace(plan.recipe.data, source=str(options.data))))
    moved = replace(plan.recipe, data=replace(plan.recipe.data, source=source.data.source))
    if options.seeds > plan.seeds:
        plan = replace(plan, seeds=options.seeds)
        store_plan(plan, output)
    return replace(plan, recipe=moved)


def _new_plan(options: Options) -> Plan:
    with warnings.catch_warnings(action="ignore"):  # told by the runs
        recipe, images = shared_recipe(options)
        with notes().status("planning") as status:
            return plan_comparison(
                _comparison(options, recipe),
                recipe,
                num_classes=len(getattr(images, "classes", ())) or 1000,
                controls=controls_of(options),
                control_of=options.control_of,
                note=lambda line: status.update(plain(line)),
                seeds=options.seeds,
                budgets=budgets_of(options),
                minutes=options.minutes,
                choice=options.choose,
                tune=factors_of(options, "tune"),
                tune_decay=factors_of(options, "tune_decay"),
                asked=_asked(options),
            )


def _comparison(options: Options, recipe: RunConfig) -> Comparison:
    own = options_of(options)
    if options.preset:
        found = preset(options.preset)
        return found if options.base is None else on_base(found, options.base, own)
    base = options.base or recipe.model.name
    if options.base is None:
        own = {**recipe.model.options, **own}
    if options.vary:
        key, values = key_and_values(options)
        return with_values(base, key, values, own)
    return with_mixers(base, words_of(options.mixers), words_of(options.places), own)


def _asked(options: Options) -> dict[str, Any]:
    """The words that make the comparison what it is, as JSON has them."""
    free = {"data", "output", "seeds", "worth", "list", "dry_run", "json", "device"}
    asked = {name: value for name, value in asdict(options).items() if name not in free}
    return dict(json.loads(json.dumps(asked)))


def _show_plan(plan: Plan, as_json: bool) -> int:
    planned = [*plan.trials(Path()), *plan.runs(Path())]
    runs, seconds = len(planned), sum(run.seconds for run in planned)
    if as_json:
        table = plan_table(plan)
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        missing = {design.name: design.missing for design in plan.comparison.designs if design.missing}
        print(json_text({"runs": runs, "seconds": seconds, "one_seed": rows, "not_built": missing}, indent=2))
        return 0
    print_tables(plan_table(plan), missing_table(plan))
    say(f"{runs} runs, {plan.seeds} seeds: about {time_in_words(seconds)} here, validation not counted")
    return 0


def _show(results: Results, output: Path, as_json: bool) -> None:
    if as_json:
        print(json_text(results.as_data(), indent=2))
        return
    print_tables(*results_tables(results), missing_table(results.plan))
    for budget, rows in results.rows.items():
        for row in rows:
            if row.sentence:
                say(f"equal {budget}: {row.sentence}")
    say(str(output / "report.html"))


def _list(as_json: bool) -> None:
    if as_json:
        print(json_text({name: asdict(comparison) for name, comparison in PRESETS.items()}, indent=2))
        return
    rows = tuple((name, str(len(each.buildable)), each.title, each.source) for name, each in PRESETS.items())
    print_table(Table("Presets", ("Preset", "Designs", "What is compared", "Source"), rows, frozenset({1})))
