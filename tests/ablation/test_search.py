"""A search: what may be drawn, what is refused, how it halves, what its best are held against."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from convattn.ablation.costs import Costs
from convattn.ablation.design import Comparison, Design
from convattn.ablation.plan import Plan
from convattn.ablation.results import Results, Row
from convattn.ablation.search import finals
from convattn.ablation.search import study as study_module
from convattn.ablation.search.finals import FAMILIES, chosen, finalists, with_latencies
from convattn.ablation.search.halving import Halved, Rung, Training, halve, random_count, rungs_of
from convattn.ablation.search.page import write_search_page
from convattn.ablation.search.results import SearchResults, refusals
from convattn.ablation.search.space import Space
from convattn.ablation.search.study import Network, check_meets, draw_networks, open_study
from convattn.ablation.widening import at_latency
from convattn.backbones.registry import create_model
from convattn.bench.latency import Latency
from convattn.bench.runtimes import Setting
from convattn.classification.options import METRICS
from convattn.config_errors import ConfigError
from convattn.nearest import UnknownName
from tiny_runs import tiny_config

optuna = pytest.importorskip("optuna")

SPACE = Space(("cot", "sam"), 16)
SETTING = Setting(image_size=16)
TOP1 = METRICS[0]
LOSS = replace(TOP1, greater_is_better=False)


def latency(milliseconds):
    return Latency("", milliseconds, 0.9 * milliseconds, 1.1 * milliseconds, 1.2 * milliseconds, 20, None)


def millions(model):
    """In the place of a time: its parameters."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def draw(study, count, limit=2.0, measure=millions):
    return draw_networks(study, SPACE, count, limit, seed=0, classes=3, setting=SETTING, measure=measure)


def test_all_that_is_drawn_has_widths_that_its_mixers_take():
    sampler = optuna.samplers.RandomSampler(seed=0)
    space, study = Space(image_side=32), optuna.create_study(sampler=sampler)
    seen = [space.draw(study.ask()) for _ in range(30)]
    for options in seen:
        for names, width, depth in zip(options["mixers"], options["dims"], options["depths"], strict=True):
            parts = names.split("+")
            assert len(set(parts)) == len(parts) <= depth <= 6
            assert width % (40 if "gma" in parts else 8) == 0
    for options in [*seen[:4], *space.smallest(), space.hand_made(), Space().hand_made()]:
        create_model("hybrid", num_classes=2, device="meta", **options)
    assert any("+" in names for options in seen for names in options["mixers"])
    assert {options["stem_stride"] for options in seen} == {2}
    attention = [o["mixer_options"][s]["e_mhsa"] for o in seen for s in range(4) if "e_mhsa" in o["mixer_options"][s]]
    assert {options["sr_ratio"] for options in attention} == {1, 2, 4}
    assert {options["token_pool"] for options in attention} == {"2d"}


def test_a_space_is_counted_and_checked():
    # Of one mixer: multiples of 8 up to 160, 320, 480, 640; 6 depths; 4 ratios: 24⁴ · 20 · 40 · 60 · 80 = 1.27e12.
    assert Space(("das",)).size() == "10^12"
    with pytest.raises(UnknownName, match="unknown mixer 'cott'; nearest: cot"):
        Space(("cott",))
    with pytest.raises(ConfigError, match="no mixer to compose a network of"):
        Space(())


def test_a_latency_that_nothing_meets_names_the_fastest():
    times = iter([3.0, 2.0, 5.0, 2.0])
    with pytest.raises(
        ConfigError, match=r"nothing meets 1 ms in fused here; the fastest found takes 2.00 ms \(sam in"
    ):
        check_meets(SPACE, 1.0, 3, lambda model: next(times), "fused")
    check_meets(SPACE, 5.0, 3, lambda model: next(times), "fused")
    assert next(times) == 2.0  # the first was enough

    def fail(model):
        raise RuntimeError("no such\noperator")

    with pytest.raises(ConfigError, match="none of the smallest networks runs in openvino here: no such operator"):
        check_meets(SPACE, 5.0, 3, fail, "openvino")


def test_a_search_that_was_killed_draws_what_it_would_have_drawn(tmp_path):
    whole = open_study(tmp_path / "whole.journal", {"latency": "1 ms"}, maximise=True)
    want = draw(whole, 4)
    assert all(network.latency_ms <= 2.0 for network in want)
    assert refusals(whole)["latency"] == sum(trial.user_attrs["latency_ms"] > 2.0 for trial in whole.trials) > 0
    path = tmp_path / "killed.journal"
    killed = open_study(path, {"latency": "1 ms"}, maximise=True)
    draw(killed, 2)

    def kill(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(killed, 4, measure=kill)
    lost = len(killed.trials) - 1
    again = open_study(path, {"latency": "1 ms"}, maximise=True)
    got = draw(again, 3)
    assert again.trials[lost].state == optuna.trial.TrialState.FAIL
    assert [n for n in got if n.number != lost][:3] == [n for n in draw(whole, 5) if n.number != lost][:3]


def test_a_draw_that_cannot_be_built_or_was_drawn_before_is_refused(tmp_path, monkeypatch):
    study = open_study(tmp_path / "study.journal", {}, maximise=True)
    good, bad = SPACE.hand_made(), SPACE.hand_made() | {"dims": (1, 2, 3, 4)}
    other = good | {"depths": (1, 1, 1, 1)}
    draws = iter([good, bad, good, other])
    monkeypatch.setattr(study_module.Space, "draw", lambda self, trial: next(draws))
    assert [network.options for network in draw(study, 2, limit=9.0)] == [good, other]
    assert refusals(study) == {"cannot be built or run": 1, "drawn before": 1}
    monkeypatch.setattr(study_module, "_MOST_DRAWN", 1)
    with pytest.raises(ConfigError, match="2 of the 4 networks drawn keep within 9 ms, and 3 are needed; the fastest"):
        draw(study, 3, limit=9.0)


def test_only_a_study_of_the_same_search_is_gone_on_with(tmp_path):
    path = tmp_path / "study.journal"
    open_study(path, {"mixers": "cot", "images": 10}, maximise=True)
    open_study(path, {"mixers": "cot", "images": 10}, maximise=True)
    with pytest.raises(ConfigError, match=r"holds another search \(images 10\); choose another --output$"):
        open_study(path, {"mixers": "cot", "images": 12}, maximise=True)
    for text in ("a letter\n", "{}\n", '{"op": 1}'):
        other = tmp_path / "other"
        other.write_text(text)
        with pytest.raises(ConfigError, match=r"other: no study of convattn search \("):
            open_study(other, {}, maximise=True)
        assert other.read_text() == text


def test_rungs_and_their_budget():
    rungs = rungs_of(27, (1, 3, 9))
    assert rungs == (Rung(1, 27), Rung(3, 9), Rung(9, 3))
    assert random_count(rungs) == 9  # 81 epochs, 9 each
    assert random_count(rungs_of(5, (2,))) == 5
    for networks, epochs, message in (
        (27, (0, 3), "rungs 0,3: the budget ends before one epoch; the first rung is 1 epoch or more"),
        (27, (3, 1), "rungs 3,1 must rise, such as 1,3,9"),
        (8, (1, 3, 9), "networks 8: 3 rungs need 9 or more, or give fewer rungs"),
    ):
        with pytest.raises(ConfigError, match=message):
            rungs_of(networks, epochs)


class Known:
    """In the place of a training: figures by network and epochs, None for a run that fails."""

    def __init__(self, figures, kill_at=None):
        self.known, self.trained, self.kill_at = figures, [], kill_at

    def run(self, network, epochs):
        return network.number, epochs

    def sweep(self, runs):
        if runs[0][1] == self.kill_at:
            raise KeyboardInterrupt
        self.trained.append(runs)

    def figures(self, networks, epochs, metric):
        found = {network.number: self.known(network.number, epochs) for network in networks}
        return {number: value for number, value in found.items() if value is not None}


@pytest.mark.parametrize("metric", [TOP1, LOSS])
def test_halving_keeps_the_best_third_and_tells_the_study(tmp_path, metric):
    sign = 1 if metric.greater_is_better else -1
    study = open_study(tmp_path / "study.journal", {}, maximise=metric.greater_is_better)
    for _ in range(9):
        study.ask()
    networks = [Network(number, {}, 1.0) for number in range(9)]
    by_one = {0: 10, 1: 50, 2: 20, 3: 60, 4: 30, 5: None, 6: 55, 7: 5, 8: 1}
    by_three = {1: 61, 3: 59, 6: 64, 0: 40, 2: 41, 4: 70, 5: 12}

    def figure(number, epochs):
        value = (by_one if epochs == 1 else by_three)[number]
        return None if value is None else sign * value

    with pytest.raises(KeyboardInterrupt):
        halve(study, networks, rungs_of(9, (1, 3)), Known(figure, kill_at=3), metric)
    training = Known(figure)
    halved = halve(study, networks, rungs_of(9, (1, 3)), training, metric)
    assert training.trained == [[(n, 1) for n in range(9)], [(n, 3) for n in (1, 3, 6)], [(n, 3) for n in range(6)]]
    assert halved.ranking(metric) == [6, 1, 3, 4, 2, 0, 7, 8]
    assert halved.best_at_random(metric) == 4
    states = optuna.trial.TrialState
    assert [trial.state for trial in study.trials] == [
        states.PRUNED if number not in (1, 3, 5, 6) else states.FAIL if number == 5 else states.COMPLETE
        for number in range(9)
    ]
    assert study.trials[6].intermediate_values == {1: sign * 55, 3: sign * 64}
    assert study.best_trial.number == 6
    assert halve(study, networks, rungs_of(9, (1, 3)), training, metric) == halved  # told once


def test_runs_of_a_search_see_no_image_that_judges(tmp_path):
    recipe = tiny_config(
        "digits", "unused", data=dict(validation="0.1", evaluations=("test=x",)), schedule=dict(epochs=8)
    )
    training = Training(recipe, 10, 0.5, tmp_path, lambda runs: None)
    runs = [training.run(Network(4, {"dims": (8, 8, 8, 8)}, 1.0), epochs) for epochs in (1, 3)]
    assert [(run.updates, run.seconds, run.config.schedule.updates) for run in runs] == [(10, 5.0, 10), (30, 15.0, 30)]
    assert [run.folder.relative_to(tmp_path).as_posix() for run in runs] == [
        "epochs1/network4/run",
        "epochs3/network4/run",
    ]
    for run in runs:
        assert run.config.data.evaluations == ()
        assert run.config.data.validation == "0.1"
        assert (run.config.model.name, run.config.model.options) == ("hybrid", {"dims": (8, 8, 8, 8)})
    assert runs[0].config.loop.seed == runs[1].config.loop.seed > 2**31


def squared(design):
    """In the place of a time: widths squared, as of a network without overhead."""
    dims = design.options["dims"] if "dims" in design.options else design.options["transformer_dims"]
    return sum(width**2 for width in dims) / 1e4


@pytest.mark.parametrize("limit", [1.0, 9.0])
def test_widths_are_scaled_to_a_latency_both_ways(limit):
    base = Design("base", "smt_nano", {"dims": (24, 48, 96, 160)}, role="base")
    found = at_latency(base, limit, squared, {"num_classes": 2})
    assert squared(found) == pytest.approx(limit, rel=0.15)
    assert (found.name, found.role) == ("base", "base")
    assert found.note == f"its width is scaled: {squared(found):.2f} ms for {limit:g} ms"


def finalists_of(random):
    networks = [Network(number, Space(("cot",), 32).hand_made(), 1.0) for number in range(6)]
    halved = Halved((Rung(1, 6), Rung(3, 2)), ({n: 10.0 * n for n in range(6)}, {5: 50.0, 4: 60.0}), random)
    return finalists(Space(image_side=32), networks, halved, TOP1, 5.0, squared, title="Within 5 ms", classes=3)


def test_the_best_three_stand_beside_all_else_at_this_latency(monkeypatch):
    monkeypatch.setattr(finals, "at_latency", lambda base, *_: replace(base, note="scaled"))
    comparison = finalists_of({0: 30.0, 1: 20.0})
    names = [design.name for design in comparison.designs]
    assert names == ["hand-made", "found 1", "found 2", "found 3", "random search", *FAMILIES]
    assert comparison.base.name == "hand-made"
    notes = [design.note for design in comparison.designs[1:5]]
    assert notes == [f"network{number} of the search" for number in (4, 5, 3, 0)]
    both = finalists_of({0: 30.0, 5: 50.0})
    assert [design.name for design in both.designs][3:5] == ["found 3", "smt_nano"]
    assert both.designs[2].note == "network5 of the search; the best of the random search too"
    with pytest.raises(ConfigError, match="none of the search's runs was finished"):
        finalists(SPACE, [], Halved((), ({},), {}), TOP1, 5.0, squared, title="", classes=3)


def planned():
    designs = tuple(Design(name, "hybrid") for name in ("found 1", "found 2"))
    designs = (Design("hand-made", "hybrid", role="base"), *designs)
    recipe = tiny_config("digits", "unused", data=dict(validation="0.1", evaluations=("test=x",)))
    known = {design.name: Costs(100, 10, 1.0, 0.9, 1.1, 1.0, 4.0, 10, 2**20) for design in designs}
    plan = Plan(Comparison("Within 5 ms", designs), recipe, known, seeds=2, environment=(("Processor", "x"),))
    return with_latencies(
        plan, {name: latency(ms) for name, ms in (("hand-made", 4.0), ("found 1", 3.0), ("found 2", 5.0))}
    )


def test_the_network_that_is_kept_is_chosen_by_images_held_out(tmp_path, monkeypatch):
    held_out, test = {"found 1": 50.0, "found 2": 60.0}, {"found 1": 90.0, "found 2": 10.0}

    def run(folder):
        figures = {
            "top1": held_out[folder.parent.name.replace("-", " ")],
            "test/top1": test[folder.parent.name.replace("-", " ")],
        }
        return SimpleNamespace(epochs=[SimpleNamespace(get=figures.get)])

    done = {"found 1"}
    monkeypatch.setattr(finals, "read_run", run)
    monkeypatch.setattr(finals, "is_done", lambda run: run.design in done or run.seed == 0)
    design, means = chosen(planned(), tmp_path, TOP1)
    assert (design.name, means) == ("found 1", {"found 1": 50.0})  # the other lacks a seed
    done.add("found 2")
    design, means = chosen(planned(), tmp_path, TOP1)
    assert (design.name, means) == ("found 2", held_out)
    assert chosen(planned(), tmp_path, LOSS)[0].name == "found 1"
    monkeypatch.setattr(finals, "is_done", lambda run: False)
    assert chosen(planned(), tmp_path, TOP1) is None


def found():
    plan = planned()
    figures = {"hand-made": {0: 50.0, 1: 51.0}, "found 1": {0: 49.0, 1: 50.0}, "found 2": {0: 48.0, 1: 49.0}}
    rows = tuple(Row(d, plan.costs[d.name], 10, figures[d.name], 60.0) for d in plan.comparison.designs)
    networks = {number: Network(number, SPACE.hand_made(), 1.5 + number) for number in (0, 2)}
    halved = Halved((Rung(1, 2), Rung(3, 1)), ({0: 30.0, 2: 40.0}, {2: 45.0}), {0: 41.0})
    return SearchResults(
        Results(plan, TOP1, {"epochs": rows}, "the last epoch, on the test images", 0.5),
        halved,
        networks,
        7,
        {"latency": 4, "drawn before": 1},
        "10^9",
        5.0,
        "openvino, one image of 32 px",
        plan.comparison.designs[1],
        {"found 1": 47.0},
    )


def test_what_a_search_came_to_in_words_tables_and_json():
    one = found()
    assert list(one.sentences()) == [
        "7 of about 10^9 networks were drawn, 1 refused (drawn before), 4 refused (latency); each was timed in "
        "openvino, one image of 32 px before it was trained",
        "halving found network2 at 45.00 % in 5 epochs",
        "random search at equal budget found network0 at 41.00 %: the networks drawn first, 1 of them, 3 epochs each. "
        "Both figures are the best of many and too high",
        "found 1 is kept: 47.00 % on images held out, the best of those found when trained again; the images that "
        "judge had no say",
    ]
    alone = replace(one.retrained.plan.recipe.data, evaluations=())
    plan = replace(one.retrained.plan, recipe=replace(one.retrained.plan.recipe, data=alone))
    *_, last = replace(one, retrained=replace(one.retrained, plan=plan)).sentences()
    assert last.endswith("there is no split test or val, so the same images judge it, a little too well")
    front, table = one.tables()
    assert table.columns[-4:] == ("Latency, ms", "1 epoch", "3 epochs", "Random search")
    assert [row[0] for row in table.rows] == ["network0", "network2"]
    assert [row[-4:] for row in table.rows] == [
        ("1.50", "30.00 %", "–", "41.00 %"),
        ("3.50", "40.00 %", "45.00 %", "–"),
    ]
    assert front.rows[0] == ("found 1", "2.70", "3.00", "49.50 %", "yes")
    assert [(row[0], row[-1]) for row in front.rows[1:]] == [("hand-made", "yes"), ("found 2", "–")]
    assert one.front() == ["found 1", "hand-made"]  # found 2 is slower and worse
    less_is_better = replace(one, retrained=replace(one.retrained, metric=LOSS))
    assert less_is_better.front() == ["found 1", "found 2"]
    data = json.loads(json.dumps(one.as_data()))
    assert data["networks"][1]["figures"] == {"1": 40.0, "3": 45.0}
    assert data["retrained"]["budgets"]["epochs"][0]["latency_ms"] == 4.0
    assert data["chosen"] == "found 1"


def test_the_page_of_a_search_shows_front_comparison_and_networks(tmp_path):
    write_search_page(tmp_path / "report.html", found())
    page = (tmp_path / "report.html").read_text()
    assert page.count('<b class="mark') == 3
    assert page.count('<b class="mark filled') == 2
    assert "convattn search" in page
    assert "Networks trained in the search" in page
    assert page.count('class="dot"') == 6
    empty = found()
    rows = tuple(replace(row, figures={}) for row in empty.retrained.rows["epochs"])
    write_search_page(
        tmp_path / "empty.html", replace(empty, retrained=replace(empty.retrained, rows={"epochs": rows}))
    )
    assert '<b class="mark' not in (tmp_path / "empty.html").read_text()
