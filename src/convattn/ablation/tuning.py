"""Learning rate and weight decay of each design, found by as many trials as those of the others."""

from dataclasses import replace
from pathlib import Path

from convattn.ablation.plan import Factors, Plan
from convattn.ablation.sweep import is_done
from convattn.config_errors import check
from convattn.report.run import read_run
from convattn.rooms import words_of

__all__ = ["tuned"]


def tuned(plan: Plan, output: Path) -> Plan:
    """The plan with what its trials found best at their last epoch, on images held out.

    Raises:
        ConfigError: if no trial of a design was finished.
    """
    metric = words_of(plan.recipe.task.kind).metrics[0]
    factors: dict[str, Factors] = {}
    best: dict[str, float] = {}
    trials, tries = plan.trials(output), plan.tries * len(plan.comparison.buildable)
    for trial, tried in zip(trials, tries, strict=True):
        if not is_done(trial):
            continue
        value = read_run(trial.folder).epochs[-1].get(metric.name)
        if value is not None and (trial.design not in best or metric.is_better(value, best[trial.design])):
            best[trial.design] = value
            factors[trial.design] = tried
    for design in plan.comparison.buildable:
        check(
            not plan.tries or design.name in factors,
            f"{design.name}: none of its {len(plan.tries)} trials was finished",
        )
    return replace(plan, factors=factors)
