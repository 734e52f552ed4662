"""Other tasks are compared by their first metric, with blocks in the backbone."""

import pytest

from convattn.ablation.design import Comparison, Design, plug_in
from convattn.ablation.planning import plan_comparison
from convattn.ablation.results import read_results
from convattn.ablation.sweep import run_sweep
from tiny_detection import tiny_detection, write_objects
from tiny_segmenters import TINY_OPTIONS, tiny_segmentation, write_masks

BLOCKS = Comparison(
    "Blocks in a backbone",
    (
        Design("none", "smt_nano", TINY_OPTIONS, role="base"),
        Design("se", "smt_nano", TINY_OPTIONS, (plug_in("attach", "se", "stages"),)),
    ),
)


def compared(recipe, folder):
    plan = plan_comparison(BLOCKS, recipe, num_classes=3, seeds=2)
    assert plan.costs["none"].macs is None or plan.costs["none"].macs < plan.costs["se"].macs
    assert run_sweep(plan.runs(folder), folder).failed == ()
    return read_results(plan, folder, worth=0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*names the 3 classes")
def test_segmenters(tmp_path):
    source = write_masks(tmp_path / "masks", train=4, val=2)
    recipe = tiny_segmentation(source, tmp_path / "run", schedule=dict(epochs=1, updates=None, warmup_epochs=0))
    results = compared(recipe, tmp_path / "out")
    assert results.metric.name == "miou"
    assert [len(row.figures) for row in results.rows["epochs"]] == [2, 2]


@pytest.mark.slow
def test_detectors(tmp_path):
    source = write_objects(tmp_path / "objects")
    recipe = tiny_detection(source, tmp_path / "run", schedule=dict(epochs=1, warmup_epochs=0))
    results = compared(recipe, tmp_path / "out")
    assert results.metric.name == "box_ap"
    assert [len(row.figures) for row in results.rows["epochs"]] == [2, 2]
