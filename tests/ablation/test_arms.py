from types import SimpleNamespace

import pytest

from convattn.ablation import widening
from convattn.ablation.arms import on_base, placebo_of, slug, with_mixers, with_values
from convattn.ablation.building import build
from convattn.ablation.design import Design
from convattn.ablation.presets import preset
from convattn.ablation.widening import of_equal_latency, of_equal_parameters
from convattn.config_errors import ConfigError
from convattn.nearest import UnknownName

NARROW = {"channels": (8, 16, 24, 32), "num_classes": 10}


def parameters(design):
    return sum(parameter.numel() for parameter in build(design, meta=True).parameters())


def test_mixers_at_places():
    comparison = with_mixers("timm:resnet18", ["none", "se", "das"], options=NARROW)
    assert [design.name for design in comparison.designs] == ["none", "se", "das"]
    assert comparison.base.plug_ins == ()
    two = with_mixers("timm:resnet18", ["se"], ["stages", "conv3x3", "replace:layer4.*.conv2"])
    assert [design.name for design in two.designs[1:]] == [
        "se at stages",
        "se at conv3x3",
        "se at replace:layer4.*.conv2",
    ]
    assert [design.plug_ins[0]["kind"] for design in two.designs[1:]] == ["attach", "replace", "replace"]
    base, gated = (parameters(design) for design in comparison.designs[:2])
    assert gated > base


def test_values_of_an_option():
    comparison = with_values("smt_nano", "num_heads", [1, 2], {"num_classes": 3})
    assert [design.name for design in comparison.designs] == ["base", "num_heads=1", "num_heads=2"]
    assert comparison.designs[1].options == {"num_classes": 3, "num_heads": 1}
    assert with_values("hybrid", "mixers", [("sam", "gma")]).designs[1].name == "mixers=sam+gma"


def test_a_paper_s_table_on_a_smaller_network():
    moved = on_base(preset("smt_components"), "smt_nano")
    assert parameters(moved.base) < 2e6
    assert moved.base.parameters is None
    left_out = on_base(preset("nextvit_depth"), "nextvit_nano")
    assert [design.missing for design in left_out.designs][1] == "it is nextvit_base, not nextvit_small with options"


def test_a_placebo_keeps_its_blocks():
    design = with_mixers("timm:resnet18", ["se"], options=NARROW).designs[1]
    placebo = placebo_of(design)
    assert parameters(placebo) == parameters(design)
    frozen = [p for p in build(placebo, meta=True).parameters() if not p.requires_grad]
    assert len(frozen) == 16
    with pytest.raises(ConfigError, match="none has no block that could be kept from learning"):
        placebo_of(Design("none", "timm:resnet18"))


def test_a_base_of_equal_parameters():
    designs = with_mixers("timm:resnet18", ["das"], options=NARROW).designs
    wanted = parameters(designs[1])
    control = of_equal_parameters(designs[0], wanted, {})
    assert parameters(control) == pytest.approx(wanted, rel=0.02)
    assert control.role == "control"
    with pytest.raises(ConfigError, match="none is as large as 10 already"):
        of_equal_parameters(designs[0], 10, {})


def test_widths_of_a_family():
    options = dict(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), attention_heads=(2, 2), num_heads=2, num_classes=10)
    base = Design("base", "smt_nano", options)
    control = of_equal_parameters(base, 2 * parameters(base), {})
    assert parameters(control) == pytest.approx(2 * parameters(base), rel=0.2)
    with pytest.raises(ConfigError, match="timm:mobilenetv2_050 has no option for its widths"):
        of_equal_parameters(Design("base", "timm:mobilenetv2_050", {"num_classes": 3}), 10**9, {})


def test_a_base_of_equal_latency(monkeypatch):
    def slow(model):
        return sum(parameter.numel() for parameter in model.parameters())

    def measured(candidates, **how):
        return [SimpleNamespace(median_ms=call()) for call in candidates.values()]

    monkeypatch.setattr(widening, "run_once", slow)
    monkeypatch.setattr(widening, "measure_latency", measured)
    target = Design("wide", "timm:resnet18", {**NARROW, "channels": (16, 32, 48, 64)})
    control = of_equal_latency(Design("none", "timm:resnet18", NARROW), target, {}, 64)
    assert control.name == "base, equal latency"
    assert parameters(control) == pytest.approx(parameters(target), rel=0.05)
    assert control.note.endswith("times the latency of wide")


@pytest.mark.parametrize(
    ("mixers", "error", "message"),
    [
        (["sse"], UnknownName, "unknown mixer 'sse'; nearest: se, ese"),
        (["se", "se"], ConfigError, "designs of equal names: se, se; name each once"),
        (["none"], ConfigError, "nothing to compare: name a mixer and a place"),
    ],
)
def test_what_is_wrong_is_one_line(mixers, error, message):
    with pytest.raises(error, match=message):
        with_mixers("timm:resnet18", mixers)


def test_names_as_folders():
    assert slug("+ attention (SMT)") == "+-attention-smt"
    assert slug("mixers=sam+gma") == "mixers=sam+gma"
    assert slug("...") == "design"
