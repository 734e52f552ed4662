import pytest

from convattn.classification.options import ClassificationOptions
from convattn.report.charts import comparison_curves
from convattn.report.comparison import comparison_report, differing_fields, figures_table, find_runs, run_row
from convattn.report.run import RunError, read_run
from convattn.report.write import render
from convattn.segmentation.options import SegmentationOptions
from convattn.training.config import DataConfig, LoopConfig, ModelConfig, OptimizerConfig
from html_page import Page
from run_folders import write_run


def test_runs_are_found_however_deep_and_damaged_ones_named(tmp_path):
    write_run(tmp_path / "b", [1.0])
    write_run(tmp_path / "sweep" / "deep" / "a", [])
    broken = write_run(tmp_path / "broken", [1.0])
    (broken / "config.json").write_text("{")
    (tmp_path / "b" / "checkpoints" / "step_1").mkdir(parents=True)
    (tmp_path / "b" / "checkpoints" / "step_1" / "config.json").write_text("{}")  # belongs to b
    runs, problems = find_runs(tmp_path)
    assert list(runs) == ["b", "sweep/deep/a"]
    (problem,) = problems
    assert problem.startswith(f"{broken / 'config.json'}: damaged (")
    assert list(find_runs(tmp_path / "b")[0]) == ["."]


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"gone: no such folder"):
        find_runs(tmp_path / "gone")


@pytest.mark.parametrize(
    ("task", "heading"), [(SegmentationOptions(), "Best mIoU (epoch)"), (ClassificationOptions(), "Best top-1 (epoch)")]
)
def test_the_best_figure_is_called_as_it_is_written(tmp_path, task, heading):
    run = read_run(write_run(tmp_path / "one", [1.0], task=task))
    assert heading in figures_table({"one": run}).columns


def test_only_fields_that_differ_are_told(tmp_path):
    one = write_run(tmp_path / "one", [1.0], optimizer=OptimizerConfig(lr=0.5), loop=LoopConfig(seed=3))
    other = write_run(tmp_path / "other", [1.0], optimizer=OptimizerConfig(lr=0.25), loop=LoopConfig(seed=3))
    third = write_run(tmp_path / "third", [1.0], model=ModelConfig(options={"depths": 2}), loop=LoopConfig(seed=3))
    runs = [read_run(folder) for folder in (one, other, third)]
    assert differing_fields(runs[:2]) == {"optimizer.lr": [0.5, 0.25]}
    assert differing_fields(runs) == {
        "model.options": [{}, {}, None],
        "optimizer.lr": [0.5, 0.25, 0.001],
        "model.options.depths": [None, None, 2],
    }
    assert differing_fields(runs[:1]) == differing_fields([]) == {}


def test_key_figures_of_a_run(tmp_path):
    assert run_row(read_run(write_run(tmp_path / "run", [10.0, 40.0, 30.0]))) == {
        "model": "smt_nano",
        "network": "smt_nano",
        "task": "classification",
        "data": "digits",
        "epochs": 3,
        "planned": 4,
        "best_top1": 40.0,
        "best_epoch": 2,
        "train_loss": pytest.approx(2 / 3),
        "val_loss": pytest.approx(1 / 3),
        "images_per_second": 1234.5,
        "hours": 0.5,
    }
    new = run_row(read_run(write_run(tmp_path / "new", [])))
    assert (new["epochs"], new["hours"]) == (0, 0)
    assert {key for key, value in new.items() if value is None} == {
        "best_top1", "best_epoch", "train_loss", "val_loss", "images_per_second",
    }  # fmt: skip


def test_the_page_shows_the_best_first_and_all_runs(tmp_path):
    write_run(tmp_path / "weak", [10.0, 20.0])
    write_run(tmp_path / "strong", [50.0, 45.0], optimizer=OptimizerConfig(lr=0.25))
    write_run(tmp_path / "new", [])
    runs, _ = find_runs(tmp_path)
    page = Page(render(comparison_report(runs, "Runs in here", ["<b>x</b>: damaged"])))
    for text in (
        "Runs in here 3 runs, 40 min in all. Best Top-1 50.00 % strong, epoch 1 Second 20.00 % weak, epoch 2",
        "How they learned strong weak Top-1",
        "strong smt_nano 2 / 4 50.00 % (1) 1.000 0.500 1,234 0.33",
        "new smt_nano 0 / 4 – – – – 0.00",
        "Settings that differ Setting new strong weak optimizer.lr 0.001 0.25 0.001",
        "<b>x</b>: damaged",
    ):
        assert text in page.words, text


def test_runs_on_different_data_are_not_set_against_one_another(tmp_path):
    for name, data, top1, rate in (("a", "cats", 50.0, 0.5), ("b", "dogs", 90.0, 0.1), ("c", "cats", 60.0, 0.2)):
        write_run(tmp_path / name, [top1], data=DataConfig(data), optimizer=OptimizerConfig(lr=rate))
    report = comparison_report(find_runs(tmp_path)[0], "Runs")
    assert [(one.label, one.value, one.note) for one in report.figures] == [
        ("Best Top-1 on cats", "60.00 %", "c, epoch 1"),
        ("Best Top-1 on dogs", "90.00 %", "b, epoch 1"),
    ]
    assert [(table.title, table.rows) for table in report.tables if table.title.startswith("Settings")] == [
        ("Settings that differ on cats", (("optimizer.lr", "0.5", "0.2"),))
    ]
    titles = {chart.title: [line.name for line in chart.lines] for chart in comparison_curves(report.runs)}
    assert titles["Top-1 on cats"] == ["a", "c"] and titles["Top-1 on dogs"] == ["b"]
    assert "Figures on dogs Run Model" in Page(render(report)).words
