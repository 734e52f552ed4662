"""Successive halving: all networks learn a little, the best third of them three times as long, and so on.

    rung 1: 27 networks, 1 epoch -> rung 2: 9 networks, 3 epochs -> rung 3: 3 networks, 9 epochs        81 epochs in all

Each rung is a run of its own from scratch, with its own whole schedule, so that what is compared is what such a run
comes to. Beside it stands random search at the same number of epochs: the first networks drawn, as many as can be
trained as long as the last rung. Where both train the same network as long, it is the same run, and counted in both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from convattn.ablation.plan import PlannedRun, of_updates
from convattn.ablation.search.space import MODEL
from convattn.ablation.search.study import Network, Study
from convattn.ablation.sweep import is_done
from convattn.config_errors import check
from convattn.extras import require
from convattn.report.run import read_run
from convattn.task import Metric
from convattn.training.config import RunConfig

__all__ = ["FACTOR", "Halved", "Rung", "Training", "halve", "random_count", "rungs_of"]

FACTOR = 3
_SEED = 2**31 + 1  # of all runs of the search, and of no run that counts


@dataclass(frozen=True)
class Rung:
    """How many networks are trained, and how long each."""

    epochs: int
    count: int


@dataclass(frozen=True)
class Training:
    """How the networks of a search are trained: the recipe, without the images that judge."""

    recipe: RunConfig  # with images held out of the training images
    updates_per_epoch: int
    update_seconds: float  # expected
    output: Path  # the folder of the search
    sweep: Callable[[list[PlannedRun]], object]  # trains runs, or goes on with them

    def run(self, network: Network, epochs: int) -> PlannedRun:
        """Of a network, so many epochs."""
        updates = epochs * self.updates_per_epoch
        folder = self.output / f"epochs{epochs}" / network.name / "run"
        recipe = self.recipe
        config = replace(
            of_updates(recipe, updates, self.updates_per_epoch),
            model=replace(recipe.model, name=MODEL, options=network.options, plug_ins=()),
            data=replace(recipe.data, evaluations=()),
            output=replace(recipe.output, folder=str(folder), tensorboard=False),
        )
        config = replace(config, loop=replace(config.loop, seed=_SEED, early_stopping=None))
        return PlannedRun(network.name, "epochs", _SEED, config, updates, updates * self.update_seconds)

    def figures(self, networks: Sequence[Network], epochs: int, metric: Metric) -> dict[int, float]:
        """What trained networks reach on the images held out, by their numbers; a run that failed has none."""
        found = {}
        for network in networks:
            run = self.run(network, epochs)
            value = read_run(run.folder).epochs[-1].get(metric.name) if is_done(run) else None
            if value is not None:
                found[network.number] = value
        return found


@dataclass(frozen=True)
class Halved:
    """What the halving and the random search came to; figures are of images held out, by a network's number."""

    rungs: tuple[Rung, ...]
    figures: tuple[Mapping[int, float], ...]  # of each rung
    random: Mapping[int, float]  # of the random search, as long as the last rung

    def ranking(self, metric: Metric) -> list[int]:
        """The networks from the best on: by the rung that they reached, then by their figure there."""
        sign = -1 if metric.greater_is_better else 1
        order: list[int] = []
        for figures in reversed(self.figures):
            order += [number for number in sorted(figures, key=lambda n: (sign * figures[n], n)) if number not in order]
        return order

    def best_at_random(self, metric: Metric) -> int | None:
        """The best of the random search; None where all of its runs failed."""
        sign = -1 if metric.greater_is_better else 1
        return min(self.random, key=lambda number: (sign * self.random[number], number), default=None)


def rungs_of(networks: int, epochs: Sequence[int]) -> tuple[Rung, ...]:
    """The rungs for so many networks: a third of them goes on each time.

    Raises:
        ConfigError: if a budget ends before one epoch, epochs do not rise, or no network is left for the last.
    """
    check(
        bool(epochs) and min(epochs) >= 1,
        f"rungs {','.join(map(str, epochs))}: the budget ends before one epoch; the first rung is 1 epoch or more",
    )
    check(
        all(first < then for first, then in pairwise(epochs)),
        f"rungs {','.join(map(str, epochs))} must rise, such as 1,3,9",
    )
    least = FACTOR ** (len(epochs) - 1)
    check(networks >= least, f"networks {networks}: {len(epochs)} rungs need {least} or more, or give fewer rungs")
    return tuple(Rung(each, networks // FACTOR**place) for place, each in enumerate(epochs))


def random_count(rungs: Sequence[Rung]) -> int:
    """How many networks random search trains as long as the last rung, for the epochs of the halving."""
    return sum(rung.count * rung.epochs for rung in rungs) // rungs[-1].epochs


def halve(
    study: Study, networks: Sequence[Network], rungs: Sequence[Rung], training: Training, metric: Metric
) -> Halved:
    """Train by successive halving, then at random for as many epochs; what was trained before is not trained again.

    The study is told of every figure, and of who is out. `networks` are as many as either search needs, as drawn.
    """
    figures: list[Mapping[int, float]] = []
    alive = list(networks[: rungs[0].count])
    for rung, after in zip(rungs, [*rungs[1:], None], strict=True):
        training.sweep([training.run(network, rung.epochs) for network in alive])
        found = training.figures(alive, rung.epochs, metric)
        figures.append(found)
        best = Halved((rung,), (found,), {}).ranking(metric)[: after.count if after else None]
        _tell(study, alive, rung.epochs, found, going_on=best if after else ())
        alive = [network for network in alive if network.number in best]
    chance = networks[: random_count(rungs)]
    training.sweep([training.run(network, rungs[-1].epochs) for network in chance])
    return Halved(tuple(rungs), tuple(figures), training.figures(chance, rungs[-1].epochs, metric))


def _tell(
    study: Study, networks: Sequence[Network], epochs: int, figures: Mapping[int, float], going_on: Sequence[int]
) -> None:
    """Tell the study what networks reached, and end the trials of those that go no further."""
    optuna: Any = require("optuna", "search")
    states = optuna.trial.TrialState
    trials = {trial.number: trial for trial in study.get_trials(states=(states.RUNNING,))}
    is_last = not going_on
    for network in networks:
        trial, value = trials.get(network.number), figures.get(network.number)
        if trial is None:  # told before the search was stopped
            continue
        if value is not None and epochs not in trial.intermediate_values:
            optuna.trial.Trial(study, trial._trial_id).report(value, epochs)
        if value is None:
            study.tell(network.number, state=states.FAIL)
        elif is_last:
            study.tell(network.number, value)
        elif network.number not in going_on:
            study.tell(network.number, state=states.PRUNED)
