"""What a search came to: how it was drawn and halved, and what its best are worth when they are trained again."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convattn.ablation.design import Design
from convattn.ablation.results import Results, Row
from convattn.ablation.search.halving import Halved
from convattn.ablation.search.study import Network
from convattn.explain.front import Point, front_of
from convattn.task import Metric, Table

__all__ = ["SearchResults", "refusals"]

_DASH = "–"


@dataclass(frozen=True)
class SearchResults:
    """All of it."""

    retrained: Results  # the comparison of what was found with the others
    halved: Halved  # figures of the search, which are too high
    networks: Mapping[int, Network]  # those that were trained in it, by their numbers
    drawn: int  # how many there were
    refused: Mapping[str, int]  # why others were not trained -> how many
    space: str  # how many networks there are, in words
    limit_ms: float  # the latency asked for
    runtime: str  # in which, and on what images
    chosen: Design | None  # the best of those found, by the images held out; None while runs are missing
    held_out: Mapping[str, float]  # means of those found on these images

    @property
    def metric(self) -> Metric:
        """By which networks are chosen and compared."""
        return self.retrained.metric

    @property
    def epochs(self) -> int:
        """That the halving took, all networks together; random search takes no more."""
        return sum(rung.count * rung.epochs for rung in self.halved.rungs)

    def placed(self) -> list[tuple[Row, float, float]]:
        """The designs with their latency in milliseconds and the mean of their seeds, under the first budget."""
        rows = next(iter(self.retrained.rows.values()))
        return [(r, r.costs.p10_ms, r.mean) for r in rows if r.costs.p10_ms is not None and r.mean is not None]

    def front(self) -> list[str]:
        """The designs beside which no other is as fast and as good, the fastest first."""
        sign = 1 if self.metric.greater_is_better else -1
        return [one.name for one in front_of(Point(r.design.name, ms, sign * mean) for r, ms, mean in self.placed())]

    def sentences(self) -> Iterator[str]:
        """In words."""
        refused = ", ".join(f"{count} refused ({reason})" for reason, count in sorted(self.refused.items()))
        yield (
            f"{self.drawn} of about {self.space} networks were drawn{f', {refused}' if refused else ''}; "
            f"each was timed in {self.runtime} before it was trained"
        )
        ranking, at_random = self.halved.ranking(self.metric), self.halved.best_at_random(self.metric)
        if ranking:
            best = next(found[ranking[0]] for found in reversed(self.halved.figures) if ranking[0] in found)
            yield f"halving found {self.networks[ranking[0]].name} at {self.metric.text(best)} in {self.epochs} epochs"
        if at_random is not None:
            count = len(self.halved.random)
            yield (
                f"random search at equal budget found {self.networks[at_random].name} at "
                f"{self.metric.text(self.halved.random[at_random])}: the networks drawn first, {count} of them, "
                f"{self.halved.rungs[-1].epochs} epochs each. Both figures are the best of many and too high"
            )
        if self.chosen is not None:
            judges = "the images that judge had no say"
            if not self.retrained.plan.recipe.data.evaluations:
                judges = "there is no split test or val, so the same images judge it, a little too well"
            yield (
                f"{self.chosen.name} is kept: {self.metric.text(self.held_out[self.chosen.name])} on images held out, "
                f"the best of those found when trained again; {judges}"
            )

    def tables(self) -> Iterator[Table]:
        """The front, and the networks that were trained in the search."""
        yield self._front_table()
        rungs = [f"{rung.epochs} epoch{'s' if rung.epochs > 1 else ''}" for rung in self.halved.rungs]
        columns = ("Network", "Mixers", "Widths", "Depths", "MLP", "Latency, ms", *rungs, "Random search")
        rows = []
        for number, network in self.networks.items():
            options, figures = network.options, [found.get(number) for found in self.halved.figures]
            if not any(value is not None for value in (*figures, self.halved.random.get(number))):
                continue
            sizes = (" ".join(map(str, options[key])) for key in ("dims", "depths", "mlp_ratios"))
            values = [_DASH if value is None else self.metric.text(value) for value in figures]
            values.append(self.metric.text(self.halved.random.get(number)))
            rows.append((network.name, "  ".join(options["mixers"]), *sizes, f"{network.latency_ms:.2f}", *values))
        note = f"{self.metric.title} on images held out of the training images, by runs of their own for each length."
        numbers = frozenset(range(5, len(columns)))
        yield Table("Networks trained in the search", columns, tuple(rows), numbers, note)

    def _front_table(self) -> Table:
        on_front = self.front()
        rows = [
            (
                row.design.name,
                f"{ms:.2f}",
                _DASH if row.costs.median_ms is None else f"{row.costs.median_ms:.2f}",
                self.metric.text(mean),
                "yes" if row.design.name in on_front else _DASH,
            )
            for row, ms, mean in sorted(self.placed(), key=lambda one: one[1])
        ]
        columns = ("Design", "10th percentile, ms", "Median, ms", self.metric.title, "On the front")
        note = f"All timed in turns in {self.runtime}; the latency that counts is the tenth percentile of the calls."
        return Table(f"Within {self.limit_ms:g} ms", columns, tuple(rows), frozenset({1, 2, 3}), note)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "latency_ms": self.limit_ms,
            "runtime": self.runtime,
            "space": self.space,
            "drawn": self.drawn,
            "refused": dict(self.refused),
            "epochs": self.epochs,
            "rungs": [{"epochs": rung.epochs, "networks": rung.count} for rung in self.halved.rungs],
            "networks": [self._network(network) for network in self.networks.values()],
            "chosen": None if self.chosen is None else self.chosen.name,
            "held_out": dict(self.held_out),
            "front": self.front(),
            "retrained": self.retrained.as_data(),
        }

    def _network(self, network: Network) -> dict[str, Any]:
        return {
            "name": network.name,
            "options": dict(network.options),
            "latency_ms": network.latency_ms,
            "figures": {
                str(rung.epochs): figures[network.number]
                for rung, figures in zip(self.halved.rungs, self.halved.figures, strict=True)
                if network.number in figures
            },
            "random": self.halved.random.get(network.number),
        }


def refusals(study: Any) -> dict[str, int]:
    """Why networks of a study were not trained -> how many."""
    reasons = (trial.user_attrs.get("refused") for trial in study.trials)
    known = ("latency", "drawn before")
    return dict(Counter(each if each in known else "cannot be built or run" for each in reasons if each is not None))
