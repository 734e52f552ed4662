"""The runs of a comparison, fixed before the first of them: which designs, how long, with which seeds.

OUTPUT/
  plan.json                  designs, costs, budgets; made once, by whoever comes first
  epochs/DESIGN/seed0/       an ordinary run of equal epochs
  time/DESIGN/seed0/         of equal time; the base's is that of equal epochs, unless minutes are given
  tuning/DESIGN/lr0.5-decay1/ a trial of a learning rate and a weight decay, where such are asked for
  report.html, results.json
"""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from convattn.ablation.arms import slug
from convattn.ablation.costs import Costs
from convattn.ablation.design import Comparison, Design
from convattn.atomic import write_atomically
from convattn.config_errors import ConfigError, check
from convattn.data.held_out import share_of
from convattn.json_text import with_tuples
from convattn.training.config import RunConfig, ScheduleConfig
from convattn.training.config_json import config_from_json, config_to_json, read_json

__all__ = ["Budget", "Choice", "Factors", "Plan", "PlannedRun", "check_seeds", "of_updates", "read_plan", "store_plan"]

Budget = Literal["epochs", "time"]
Choice = Literal["last", "best"]

_NAME = "plan.json"
_TUNING_SEED = 2**31  # of no run that counts
_HELD_OUT = 0.1  # of the training images, to tune by


@dataclass(frozen=True)
class PlannedRun:
    """A design under a budget with a seed."""

    design: str
    budget: Budget
    seed: int
    config: RunConfig
    updates: int
    seconds: float  # expected, by the costs

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.output.folder)


@dataclass(frozen=True)
class Factors:
    """By what a design multiplies the recipe's settings."""

    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass(frozen=True)
class Plan:
    """Everything that is fixed."""

    comparison: Comparison  # designs that could not be built have `missing` set
    recipe: RunConfig  # the run that all share but for the model
    costs: Mapping[str, Costs]  # by the designs' names
    seeds: int = 5  # how many, from 0
    budgets: tuple[Budget, ...] = ("epochs",)  # one or both
    minutes: float | None = None  # of each run of equal time, by the clock of `Costs`; None: as the base's epochs take
    choice: Choice = "last"  # the figure of the last epoch, or of the one that is best on held-out images
    tune: tuple[float, ...] = ()  # learning rates that every design tries first, as multiples of the recipe's
    tune_decay: tuple[float, ...] = ()  # weight decays, likewise; every pair of both is tried
    factors: Mapping[str, Factors] = field(default_factory=dict)  # what each design keeps; by its trials, not stored
    asked: Mapping[str, Any] = field(default_factory=dict)  # the words it was made of; by others it is another one
    environment: tuple[tuple[str, str], ...] = ()  # where the costs were measured

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check(all(factor > 0 for factor in self.tune), f"learning rates to try {self.tune} must be above 0")
        check(all(factor > 0 for factor in self.tune_decay), f"weight decays to try {self.tune_decay} must be above 0")
        check(
            not self.tune_decay or self.recipe.optimizer.weight_decay > 0,
            "weight decays to try are multiples of the recipe's, which is 0; leave them out, or set its weight decay",
        )
        for budget in self.budgets:
            for design in self.comparison.buildable:
                self._check_an_epoch(design, budget)

    def runs(self, output: Path) -> list[PlannedRun]:
        """All of them, the designs of one seed after one another, so that pairs are whole early."""
        found: dict[Path, PlannedRun] = {}
        for seed in range(self.seeds):
            for budget in self.budgets:
                for design in self.comparison.buildable:
                    run = self.run(output, design, budget, seed)
                    found.setdefault(run.folder, run)
        return list(found.values())

    @property
    def tries(self) -> list[Factors]:
        """What every design tries first: every learning rate with every weight decay; none if none are asked for."""
        pairs = itertools.product(self.tune or (1.0,), self.tune_decay or (1.0,))
        return [Factors(*pair) for pair in pairs] if self.tune or self.tune_decay else []

    def trials(self, output: Path) -> list[PlannedRun]:
        """A run of each design at each of its tries, with a seed of its own, judged by training images held out."""
        data = replace(self.recipe.data, validation=self.recipe.data.validation, evaluations=())
        if share_of(data.validation) is None:
            data = replace(data, validation=str(_HELD_OUT))
        found = []
        for design in self.comparison.buildable:
            for factors in self.tries:
                name = f"lr{factors.lr:g}-decay{factors.weight_decay:g}"
                folder = output / "tuning" / slug(design.name) / name
                untuned = replace(self, factors={design.name: factors}).run(output, design, "epochs", _TUNING_SEED)
                config = replace(untuned.config, data=data, output=replace(untuned.config.output, folder=str(folder)))
                found.append(replace(untuned, config=config))
        return found

    def run(self, output: Path, design: Design, budget: Budget, seed: int) -> PlannedRun:
        """That of a design, under a budget, with a seed."""
        updates = self.updates(design, budget)
        optimizer, factors = self.recipe.optimizer, self.factors.get(design.name, Factors())
        folder = output / self._place(design, budget) / slug(design.name) / f"seed{seed}"
        config = replace(
            self.recipe,
            model=replace(self.recipe.model, name=design.model, options=design.options, plug_ins=design.plug_ins),
            optimizer=replace(
                optimizer, lr=optimizer.lr * factors.lr, weight_decay=optimizer.weight_decay * factors.weight_decay
            ),
            loop=replace(self.recipe.loop, seed=seed, early_stopping=None),
            output=replace(self.recipe.output, folder=str(folder), tensorboard=False),
        )
        if self._place(design, budget) == "time":
            config = of_updates(config, updates, self.costs[design.name].updates_per_epoch)
        return PlannedRun(design.name, budget, seed, config, updates, updates * self.costs[design.name].update_seconds)

    def updates(self, design: Design, budget: Budget) -> int:
        """Of each run of a design under a budget."""
        costs, base = self.costs[design.name], self.costs[self.comparison.base.name]
        if self._place(design, budget) == "epochs":
            return self.recipe.schedule.length(costs.updates_per_epoch)
        seconds = (
            self.minutes * 60
            if self.minutes is not None
            else self.recipe.schedule.length(base.updates_per_epoch) * base.update_seconds
        )
        return round(seconds / costs.update_seconds)

    @property
    def seconds_a_seed(self) -> dict[Budget, float]:
        """What one more seed of all designs takes under each budget, expected."""
        return {
            budget: sum(
                self.updates(design, budget) * self.costs[design.name].update_seconds
                for design in self.comparison.buildable
            )
            for budget in self.budgets
        }

    def _place(self, design: Design, budget: Budget) -> Budget:
        """The folder of a run: that of equal epochs where it is the same run."""
        is_same = design.role == "base" and self.minutes is None and "epochs" in self.budgets
        return "epochs" if is_same else budget

    def _check_an_epoch(self, design: Design, budget: Budget) -> None:
        updates, epoch = self.updates(design, budget), self.costs[design.name].updates_per_epoch
        if updates >= epoch:
            return
        if budget == "epochs" or self.minutes is None:
            lengthen = f"give {math.ceil(epoch / max(updates, 1) * self.recipe.schedule.epochs)} epochs or more"
        else:
            lengthen = f"give {math.ceil(epoch * self.costs[design.name].update_seconds / 6) / 10:g} minutes or more"
        raise ConfigError(
            f"the budget of equal {budget} ends before one epoch of {design.name} ({updates} of {epoch} updates); "
            f"{lengthen}"
        )


def check_seeds(seeds: int) -> None:
    """Raise ConfigError for fewer than two."""
    check(
        seeds >= 2, f"seeds {seeds}: one run says nothing of the spread between runs; take 2 or more, 5 to begin with"
    )


def store_plan(plan: Plan, output: Path) -> None:
    """Write `plan.json`."""
    content = asdict(plan) | {"recipe": json.loads(config_to_json(plan.recipe))}
    write_atomically(output / _NAME, (json.dumps(content, indent=2) + "\n").encode())


def read_plan(output: Path) -> Plan | None:
    """The plan in a folder; None where there is none, ConfigError if it is damaged."""
    path = output / _NAME
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = dict(read_json(path.read_text()))
        comparison = dict(content["comparison"])
        designs = tuple(Design(**with_tuples(design)) for design in comparison["designs"])
        content["comparison"] = Comparison(**(comparison | {"designs": designs}))
        content["costs"] = {name: Costs(**costs) for name, costs in content["costs"].items()}
        content["recipe"] = config_from_json(json.dumps(content["recipe"]))
        content |= {name: tuple(content[name]) for name in ("budgets", "tune", "tune_decay")}
        content["environment"] = tuple((name, value) for name, value in content["environment"])
        return Plan(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: damaged ({error}); remove it to plan anew") from None


def of_updates(config: RunConfig, updates: int, updates_per_epoch: int) -> RunConfig:
    """The run at another length: warm-up and milestones in proportion, a validation an epoch as before."""
    schedule: ScheduleConfig = config.schedule
    share = updates / schedule.length(updates_per_epoch)
    warmup = schedule.warmup_updates
    if warmup is None:
        warmup = round(schedule.warmup_epochs * updates_per_epoch)
    scale = share * (updates_per_epoch if schedule.updates is None else 1)
    schedule = replace(
        schedule,
        updates=updates,
        warmup_epochs=0,
        warmup_updates=round(warmup * share) or None,
        milestones=tuple(round(at * scale) for at in schedule.milestones),
    )
    return replace(config, schedule=schedule, loop=replace(config.loop, validation_updates=updates_per_epoch))
