"""The papers' tables: built, counted, and held against the figures counted before."""

import pytest

from convattn.ablation.arms import check_names
from convattn.ablation.building import build
from convattn.ablation.presets import PRESETS, preset
from convattn.bench.count import count
from convattn.nearest import UnknownName

ROWS = [(name, design) for name, comparison in PRESETS.items() for design in comparison.buildable]
# One row of each family and kind of design; the others take minutes.
QUICK = {
    ("smt_components", "one 3x3"),
    ("groupmixformer_in_pvt", "with aggregators"),
    ("nextvit_strategy", "CCCT"),
    ("cotnet_stages", "CoT in stages 3 and 4"),
    ("das_forms", "form b"),
    ("das_rivals", "cbam"),
}
CASES = [
    pytest.param(
        design,
        id=f"{name}-{design.name}",
        marks=[] if (name, design.name) in QUICK else pytest.mark.slow,
    )
    for name, design in ROWS
]


@pytest.mark.parametrize("design", CASES)
def test_a_row_counts_what_its_page_says(design):
    counted = count(build(design, meta=True))
    assert design.parameters in (None, counted.parameters)
    assert design.gmacs is None or counted.macs / 1e9 == pytest.approx(design.gmacs, abs=2e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_a_table_has_one_base_and_names_of_its_own(name):
    comparison = check_names(PRESETS[name])
    assert [design.role for design in comparison.designs].count("base") == 1
    assert comparison.base in comparison.buildable
    assert len(comparison.buildable) >= 2
    assert comparison.source
    assert bool(comparison.published_as) == any(design.published for design in comparison.designs)


def test_quick_rows_are_there():
    assert len(QUICK) == len([1 for name, design in ROWS if (name, design.name) in QUICK])
    assert all(any(name.startswith(family) for name, _ in QUICK) for family in ("smt", "group", "next", "cot", "das"))


def test_rows_that_cannot_be_built_say_why():
    missing = [design for comparison in PRESETS.values() for design in comparison.designs if design.missing]
    assert {"6 heads", "PVT-Small (v1)"} <= {design.name for design in missing}
    with pytest.raises(ValueError, match="6 heads cannot be built: widths 64, 128 and 256 are no multiples of 6"):
        build(next(design for design in missing if design.name == "6 heads"))


def test_an_unknown_preset():
    with pytest.raises(UnknownName, match="unknown preset 'smt_component'; nearest: smt_components"):
        preset("smt_component")
