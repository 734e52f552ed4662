"""The study of a search: what was drawn, what it takes, how far it came; optuna's, in a file that outlives a kill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convattn.ablation.search.space import MODEL, Space
from convattn.backbones.registry import create_model
from convattn.bench.runtimes import Setting
from convattn.config_errors import ConfigError, check
from convattn.extras import require
from convattn.json_text import with_tuples
from convattn.seeding import derived_seed

__all__ = ["Network", "Study", "check_meets", "draw_networks", "networks_of", "open_study"]

Study = Any  # optuna.Study, which is imported where a study is opened
Measure = Callable[[torch.nn.Module], float]  # milliseconds

_NAME = "convattn search"
_ASKED = "asked"
_MOST_DRAWN = 60  # for each that is wanted


@dataclass(frozen=True)
class Network:
    """One that was drawn and keeps within the latency."""

    number: int  # of its trial
    options: Mapping[str, Any]  # of `hybrid`
    latency_ms: float

    @property
    def name(self) -> str:
        """Of the network and its folder."""
        return f"network{self.number}"


def open_study(path: Path, asked: Mapping[str, Any], *, maximise: bool) -> Study:
    """The study in a file of optuna's journal format, or a new one, of what is `asked`, as JSON has it.

    Raises:
        ConfigError: if the file is none, or holds another search. MissingExtra: without optuna.
    """
    optuna = require("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = require("optuna.storages.journal", "search")
    is_new = not path.exists() or not path.stat().st_size
    storage = None
    try:
        if not is_new:
            storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))
            check(_NAME in optuna.get_all_study_names(storage), "it holds no search")
    except Exception as error:  # the journal's reader checks nothing
        raise ConfigError(f"{path}: no study of convattn search ({error}); choose another --output") from None
    if storage is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))
    direction = "maximize" if maximise else "minimize"
    study = optuna.create_study(storage=storage, study_name=_NAME, direction=direction, load_if_exists=True)
    known = study.user_attrs.get(_ASKED)
    if known is None:
        study.set_user_attr(_ASKED, dict(asked))
    else:
        other = {name: known.get(name) for name, value in asked.items() if known.get(name) != value}
        told = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in other.items())
        check(not other, f"{path}: holds another search ({told}); choose another --output")
    return study


def check_meets(space: Space, limit_ms: float, classes: int, measure: Measure, runtime: str) -> None:
    """Refuse a latency that not even the smallest networks keep, by a ConfigError that names the fastest."""
    fastest: tuple[float, str] | None = None
    reason = ""
    for options in space.smallest():
        try:
            found = measure(create_model(MODEL, num_classes=classes, **options))
        except (ValueError, RuntimeError) as error:  # a mixer that the runtime does not know
            reason = " ".join(str(error).split())
            continue
        if found <= limit_ms:
            return
        fastest = min(fastest or (float("inf"), ""), (found, options["mixers"][0]))
    check(fastest is not None, f"none of the smallest networks runs in {runtime} here: {reason}")
    assert fastest is not None
    raise ConfigError(
        f"nothing meets {limit_ms:g} ms in {runtime} here; the fastest found takes {fastest[0]:.2f} ms "
        f"({fastest[1]} in every stage, one block each); raise --latency"
    )


def draw_networks(
    study: Study,
    space: Space,
    count: int,
    limit_ms: float,
    *,
    seed: int,
    classes: int,
    setting: Setting,
    measure: Measure,
    note: Callable[[str], object] = lambda line: None,
) -> list[Network]:
    """The first `count` networks at random that can be built and run, and keep within the latency, measured one by one.

    What is refused ends its trial at once, with the reason. Trial n draws from a seed of its own, so a search that goes
    on draws what it would have drawn.

    Raises:
        ConfigError: if too few of many do. As `measure`.
    """
    optuna = require("optuna", "search")
    pruned, failed = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        if not _is_feasible(trial):  # the process ended while it was looked at
            study.tell(trial.number, state=failed)
    while len(found := networks_of(study)) < count:
        drawn = len(study.trials)
        if drawn >= _MOST_DRAWN * count:
            fastest = min((trial.user_attrs.get("latency_ms", float("inf")) for trial in study.trials), default=0.0)
            raise ConfigError(
                f"{len(found)} of the {drawn} networks drawn keep within {limit_ms:g} ms, and {count} are needed; "
                f"the fastest takes {fastest:.2f} ms; raise --latency or lower --networks"
            )
        note(f"{len(found)} of {count} networks within {limit_ms:g} ms, {drawn} drawn")
        study.sampler = optuna.samplers.RandomSampler(seed=derived_seed(seed, "search", drawn) % 2**32)
        trial = study.ask()
        options = space.draw(trial)
        trial.set_user_attr("options", options)
        if any(options == _options(other) for other in study.trials[:-1]):
            trial.set_user_attr("refused", "drawn before")
            study.tell(trial, state=pruned)
            continue
        try:
            model = create_model(MODEL, num_classes=classes, **options).eval()
            with torch.no_grad():
                model(setting.images())
            latency_ms = measure(model)
        except (ValueError, RuntimeError) as error:  # widths that do not divide, a map too small, a converter
            trial.set_user_attr("refused", " ".join(str(error).split()))
            study.tell(trial, state=pruned)
            continue
        if latency_ms > limit_ms:
            trial.set_user_attr("refused", "latency")
        trial.set_user_attr("latency_ms", latency_ms)
        if latency_ms > limit_ms:
            study.tell(trial, state=pruned)
    return found[:count]


def networks_of(study: Study) -> list[Network]:
    """The networks of a study that were not refused, in the order in which they were drawn."""
    return [
        Network(trial.number, _options(trial), trial.user_attrs["latency_ms"])
        for trial in study.trials
        if _is_feasible(trial)
    ]


def _is_feasible(trial: Any) -> bool:
    return "latency_ms" in trial.user_attrs and "refused" not in trial.user_attrs


def _options(trial: Any) -> Any:
    return with_tuples(trial.user_attrs.get("options"))
