"""Plans, their runs, and what they came to; on a folder of a few pictures."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from convattn.ablation import sweep as sweep_module
from convattn.ablation.arms import with_values
from convattn.ablation.costs import Costs
from convattn.ablation.design import Comparison, Design
from convattn.ablation.page import panels_of, write_page
from convattn.ablation.plan import Factors, Plan, read_plan, store_plan
from convattn.ablation.planning import plan_comparison
from convattn.ablation.results import read_results
from convattn.ablation.sweep import is_done, run_sweep
from convattn.ablation.tables import missing_table, plan_table, results_tables
from convattn.ablation.tuning import tuned
from convattn.config_errors import ConfigError
from convattn.nearest import UnknownName
from convattn.training.lock import FolderLock
from convattn.training.loop import TrainingError
from tiny_runs import TINY_OPTIONS, tiny_config, write_pictures

ONE = dict(schedule=dict(epochs=1, warmup_epochs=0))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=4, val=2)


def costs(seconds, parameters=100):
    return Costs(parameters, 10, 1.0, 0.9, 1.1, seconds, 4 / seconds, 10, 2**20)


def plan(**fields):
    """Without images: a base that takes 1 s an update and a design that takes 2 s, 4 epochs of 10 updates."""
    comparison = Comparison(
        "Blocks",
        (
            Design("none", "timm:resnet18", role="base"),
            Design("das", "timm:resnet18", plug_ins=({"mixer": "das"},)),
            Design("six", missing="no multiple"),
        ),
    )
    recipe = tiny_config("digits", "unused", schedule=dict(epochs=4, warmup_epochs=1))
    given = dict(seeds=2, budgets=("epochs", "time")) | fields
    return Plan(comparison, recipe, {"none": costs(1.0), "das": costs(2.0)}, **given)


def test_equal_epochs_and_equal_time(tmp_path):
    runs = plan().runs(tmp_path)
    assert [run.folder.relative_to(tmp_path).as_posix() for run in runs] == [
        "epochs/none/seed0",
        "epochs/das/seed0",
        "time/das/seed0",
        "epochs/none/seed1",
        "epochs/das/seed1",
        "time/das/seed1",
    ]
    assert [(run.updates, run.seconds) for run in runs[:3]] == [(40, 40.0), (40, 80.0), (20, 40.0)]
    timed = runs[2].config
    assert (timed.schedule.updates, timed.schedule.warmup_updates, timed.loop.validation_updates) == (20, 5, 10)
    assert [run.config.loop.seed for run in runs] == [0, 0, 0, 1, 1, 1]
    assert {run.config.optimizer for run in runs} == {runs[0].config.optimizer}
    assert plan().seconds_a_seed == {"epochs": 120.0, "time": 80.0}


def test_minutes_for_all(tmp_path):
    runs = plan(minutes=0.5, budgets=("time",)).runs(tmp_path)
    assert [(run.folder.parent.name, run.updates) for run in runs[:2]] == [("none", 30), ("das", 15)]


def test_milestones_keep_their_share(tmp_path):
    one = plan()
    schedule = replace(
        one.recipe.schedule, name="multistep", milestones=(2, 3), warmup_epochs=0, min_lr=0.0, decay_rate=0.1
    )
    timed = replace(one, recipe=replace(one.recipe, schedule=schedule))
    assert timed.run(tmp_path, timed.comparison.designs[1], "time", 0).config.schedule.milestones == (
        10,
        15,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(seeds=1), "seeds 1: one run says nothing of the spread between runs; take 2 or more, 5 to begin with"),
        (
            dict(minutes=0.1),
            r"the budget of equal time ends before one epoch of none \(6 of 10 updates\); give 0.2 minutes or more",
        ),
        (
            dict(minutes=0.2),
            r"the budget of equal time ends before one epoch of das \(6 of 10 updates\); give 0.4 minutes or more",
        ),
    ],
)
def test_budgets_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        plan(**fields)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    assert read_plan(tmp_path) is None
    one = plan(asked={"mixers": "das"}, environment=(("Processor", "x"),))
    store_plan(one, tmp_path)
    assert read_plan(tmp_path) == one
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"plan.json: damaged \('comparison'\); remove it to plan anew"):
        read_plan(tmp_path)


def test_results_are_of_the_last_epoch_and_paired(tmp_path, monkeypatch):
    one = plan(seeds=3)
    figures = {("none", 0): 50.0, ("none", 1): 60.0, ("none", 2): 70.0, ("das", 0): 51.0, ("das", 1): 61.5}
    monkeypatch.setattr("convattn.ablation.results.is_done", lambda run: (run.design, run.seed) in figures)
    monkeypatch.setattr(
        "convattn.ablation.results.read_run",
        lambda folder: SimpleNamespace(
            epochs=[SimpleNamespace(get={"top1": figures[folder.parent.name, int(folder.name[-1])]}.get)], seconds=60.0
        ),
    )
    results = read_results(one, tmp_path, worth=0.5)
    base, das = results.rows["epochs"]
    assert base.mean == 60
    assert base.interval is None
    assert das.figures == {0: 51.0, 1: 61.5}
    assert das.interval.mean == 1.25
    assert das.interval.count == 2
    assert das.adjusted_p == das.interval.p
    assert das.sentence.startswith("no difference found between das and none at this budget (+1.25 points")
    assert das.sentence.endswith("more here")
    assert results.judged == "the last epoch, on the validation images, which choose nothing"
    table = next(results_tables(results))
    assert table.rows[1][0] == "das"
    assert missing_table(one).rows == (("six", "no multiple"),)
    assert len(plan_table(one).rows) == 4
    panels = list(panels_of(results, results.rows["epochs"]))
    assert [len(track.dots) for track in panels[0].tracks] == [3, 2]
    assert panels[1].zero is not None
    data = results.as_data()
    assert json.loads(json.dumps(data))["budgets"]["time"][1]["figures"] == {"0": 51.0, "1": 61.5}
    write_page(tmp_path / "report.html", results)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="dot"') == 2 * (3 + 2 + 2)
    assert page.count("Top-1 over latency") == 2 and page.count('<b class="mark') == 2 * 2
    assert "no multiple" in page
    wide = Design("wide", "timm:resnet18", role="control", control_of="das")
    comparison = replace(one.comparison, designs=(*one.comparison.designs, wide))
    controlled = replace(one, comparison=comparison, costs={**one.costs, "wide": costs(2.0)})
    figures |= {("wide", 0): 50.5, ("wide", 1): 60.5}
    row = read_results(controlled, tmp_path, worth=0.5).rows["epochs"][2]
    assert row.sentence.count("no difference found between wide and none") == 1
    assert row.sentence.count("no difference found between das and wide at this budget (+0.75 points") == 1
    del figures["das", 1]
    few = read_results(one, tmp_path, worth=0.5).rows["epochs"][1]
    assert few.interval is None
    assert few.sentence == "das: 1 of 3 seeds done beside none; two are the least"


def test_a_sweep_goes_on_where_it_was(pictures, tmp_path, monkeypatch):
    comparison = with_values("smt_nano", "num_heads", [1], TINY_OPTIONS)
    recipe = tiny_config(pictures, "unused", **ONE)
    one = plan_comparison(comparison, recipe, num_classes=2, seeds=2)
    assert one.costs["base"].parameters > one.costs["num_heads=1"].parameters
    assert one.costs["base"].macs
    assert one.costs["base"].median_ms
    store_plan(one, tmp_path)
    one = read_plan(tmp_path)
    runs = one.runs(tmp_path)
    with FolderLock(tmp_path / "claims" / "epochs-base-seed0"):
        first = run_sweep(runs[:1], tmp_path)
    assert first.elsewhere == (runs[0],)
    assert not runs[0].folder.exists()

    def stop(run, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(runs, tmp_path, progress=stop)
    assert runs[0].folder.exists()
    assert not is_done(runs[0])
    seen = []
    assert run_sweep(runs, tmp_path, progress=lambda run, step: seen.append((run.design, run.seed, step))).failed == ()
    assert all(map(is_done, runs))
    assert seen == [(run.design, run.seed, 2) for run in runs]
    assert not (tmp_path / "claims").exists()
    monkeypatch.setattr(sweep_module, "train", None)  # nothing is left to train
    assert run_sweep(runs, tmp_path).elsewhere == ()
    rows = read_results(one, tmp_path, worth=0.5).rows["epochs"]
    assert [len(row.figures) for row in rows] == [2, 2]


def test_a_run_that_fails_is_told_and_not_tried_again(tmp_path, monkeypatch):
    def diverge(config, **how):
        tried.append(config)
        raise TrainingError("too many updates were skipped")

    tried = []
    monkeypatch.setattr(sweep_module, "train", diverge)
    runs = plan().runs(tmp_path)[:1]
    for _ in range(2):
        assert run_sweep(runs, tmp_path).failed == ((runs[0], "too many updates were skipped"),)
    assert len(tried) == 1


def test_designs_that_cannot_be_built_are_named(pictures):
    designs = (
        Design("base", "smt_nano", TINY_OPTIONS, role="base"),
        Design("3 heads", "smt_nano", {**TINY_OPTIONS, "num_heads": 3}),
    )
    recipe = tiny_config(pictures, "unused", **ONE)
    with pytest.raises(ConfigError, match="nothing to compare with base: 3 heads: "):
        plan_comparison(Comparison("Heads", designs), recipe, num_classes=2)
    two = (*designs, Design("1 head", "smt_nano", {**TINY_OPTIONS, "num_heads": 1}))
    with pytest.raises(UnknownName, match="unknown design '2 head'; nearest: 1 head"):
        plan_comparison(Comparison("Heads", two), recipe, num_classes=2, controls=["placebo"], control_of="2 head")


def test_every_design_tries_as_many_learning_rates_and_decays(tmp_path, monkeypatch):
    one = plan(tune=(0.5, 1.0), tune_decay=(1.0, 3.0))
    trials = one.trials(tmp_path)
    assert len(trials) == 8
    assert trials[0].folder == tmp_path / "tuning" / "none" / "lr0.5-decay1"
    lr, decay = one.recipe.optimizer.lr, one.recipe.optimizer.weight_decay
    tried = [(trial.config.optimizer.lr, trial.config.optimizer.weight_decay) for trial in trials[:4]]
    assert tried == [(0.5 * lr, decay), (0.5 * lr, 3 * decay), (lr, decay), (lr, 3 * decay)]
    assert {trial.config.data.validation for trial in trials} == {"0.1"}
    assert not {trial.config.loop.seed for trial in trials} & {run.config.loop.seed for run in one.runs(tmp_path)}
    found = {"lr0.5-decay1": 50.0, "lr0.5-decay3": 50.0, "lr1-decay1": 60.0, "lr1-decay3": 60.0}
    monkeypatch.setattr("convattn.ablation.tuning.is_done", lambda trial: trial.folder.parent.name == "das")
    monkeypatch.setattr(
        "convattn.ablation.tuning.read_run",
        lambda folder: SimpleNamespace(epochs=[SimpleNamespace(get={"top1": found[folder.name]}.get)]),
    )
    with pytest.raises(ConfigError, match="none: none of its 4 trials was finished"):
        tuned(one, tmp_path)
    monkeypatch.setattr("convattn.ablation.tuning.is_done", lambda trial: True)
    found["lr0.5-decay3"] = 61.0
    done = tuned(one, tmp_path)
    assert done.factors == {"none": Factors(0.5, 3.0), "das": Factors(0.5, 3.0)}
    kept = {(run.config.optimizer.lr, run.config.optimizer.weight_decay) for run in done.runs(tmp_path)}
    assert kept == {(0.5 * lr, 3 * decay)}
    no_decay = replace(one.recipe, optimizer=replace(one.recipe.optimizer, weight_decay=0.0))
    with pytest.raises(ConfigError, match="weight decays to try are multiples of the recipe's, which is 0"):
        replace(one, recipe=no_decay)
