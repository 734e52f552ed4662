"""What `convattn train` chooses where the command line leaves it open."""

from dataclasses import replace

import pytest

from convattn.classification.options import ClassificationOptions
from convattn.cli.arguments import UsageError
from convattn.cli.choices import choose_recipe, choose_rest, with_scaled_warmup
from convattn.cli.main import main
from convattn.cli.options.train import AUTO, for_images, read, run_config
from convattn.data.dataset import DataError
from convattn.recipes import RECIPES
from convattn.training.config import DataConfig, RunConfig
from convattn.training.output import stored_config
from convattn.weights.errors import CheckpointError
from tiny_masks import write_masked
from tiny_runs import tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def weights(monkeypatch):
    """Whether weights are to be had, and how often they were asked for."""

    class Weights:
        are_there, asked = False, 0

        def create(self, name, **options):
            self.asked += 1
            if not self.are_there:
                raise CheckpointError(f"weights of {name}: could not be downloaded (no network)")

    found = Weights()
    monkeypatch.setattr("convattn.backbones.registry.create_model", found.create)
    return found


def chosen(*words):
    """The configuration of the command line."""
    options = read(words)
    return run_config(for_images(options) if options.recipe == AUTO else options)


@pytest.mark.parametrize(
    ("size", "recipe", "image_size", "reason"),
    [
        (16, "smt_nano_small_images", 32, "2 training images of about 16 x 16 pixels"),
        (64, "smt_nano_small_images", 64, "(up to 64 pixels)"),
        (65, "finetune", None, "(above 64 pixels)"),
    ],
)
def test_the_recipe_follows_the_size_of_the_images(tmp_path, size, recipe, image_size, reason):
    write_pictures(tmp_path, train=1, val=1, size=size)
    config, line = choose_recipe(RunConfig(data=DataConfig(str(tmp_path))))
    assert (config.recipe, config.data.image_size) == (recipe, image_size)
    assert f"so recipe {recipe}" in line
    assert reason in line


def test_unreadable_images_do_not_decide(tmp_path):
    write_pictures(tmp_path, train=3, val=1, size=80)
    for path in (tmp_path / "train" / "dark").iterdir():
        path.write_bytes(b"")
    assert choose_recipe(RunConfig(data=DataConfig(str(tmp_path))))[0].recipe == "finetune"
    for path in (tmp_path / "train" / "bright").iterdir():
        path.write_bytes(b"")
    assert "none of the images looked at can be read" in choose_recipe(RunConfig(data=DataConfig(str(tmp_path))))[1]


@pytest.mark.parametrize(
    ("source", "recipe"), [("digits", "smt_nano_digits"), ("pipe:cat a.tar", "smt_nano_small_images")]
)
def test_what_is_no_folder_has_a_recipe_too(source, recipe):
    config, line = choose_recipe(RunConfig(data=DataConfig(source)))
    assert config.recipe == recipe
    assert recipe in line


def test_class_folders_alone_are_looked_at_with_what_is_held_out(pictures, capsys):
    words = ["--data", str(pictures / "train"), "--data.validation", "0.25"]
    assert chosen(*words).recipe == "smt_nano_small_images"
    with pytest.raises(DataError, match=r"hold some of the images out: --data.validation 0.2"):
        chosen(*words[:2])


@pytest.mark.filterwarnings("ignore:.*classes.txt. names the:convattn.data.dataset.DataWarning")
def test_images_with_masks_get_their_own_recipe_and_crops_of_their_size(tmp_path, capsys):
    data = write_masked(tmp_path / "streets")
    words = ["--data", str(data), "--task.labels.ignore-index", "9", "--output", str(tmp_path / "run")]
    options = for_images(read(words))
    config = choose_rest(replace(run_config(options)), options.given, by_default=False)
    assert (config.recipe, config.task.kind, config.task.labels.ignore_index) == ("segment_finetune", "segmentation", 9)
    assert (config.data.image_size, config.data.batch_size) == (64, 4)
    shown = capsys.readouterr().err
    assert "recipe segment_finetune, by the layout of the data" in shown
    assert "data.image_size 64, the side of training crops: images have a short side of about 6 pixels" in shown


def test_a_recipe_that_is_named_is_taken_as_it_is(pictures, capsys):
    config = chosen("--data", str(pictures), "finetune")
    assert config == replace(
        RECIPES["finetune"](), recipe="finetune", data=replace(RECIPES["finetune"]().data, source=str(pictures))
    )
    assert capsys.readouterr().err == ""


def test_fields_that_are_given_stand_whatever_is_chosen(pictures, capsys):
    words = ["--data", str(pictures), "--data.image-size", "24", "--schedule.warmup-epochs", "5"]
    config = chosen(*words, "--schedule.epochs", "9")
    assert (config.data.image_size, config.schedule.epochs, config.schedule.warmup_epochs) == (24, 9, 5)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_fewer_epochs_shorten_the_warm_up(capsys):
    config = chosen("finetune", "--schedule.epochs", "1")
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (1, 0.0667)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "schedule.warmup_epochs 0.0667 instead of 2, in proportion to schedule.epochs 1 instead of 30"
    with pytest.raises(UsageError, match=r"schedule.warmup_epochs 2.0 must be at least 0 and below the 1 epochs"):
        read(["finetune", "--schedule.epochs", "1", "--schedule.warmup-epochs", "2"])


@pytest.mark.parametrize("epochs", [None, "30", "31", "0", "-1", "few"])
def test_otherwise_the_warm_up_stays(epochs):
    config = RECIPES["finetune"]()
    assert with_scaled_warmup(config, epochs, ()) == (config, "")


@pytest.mark.parametrize(
    ("batch_size", "task", "processes", "fits"),
    [
        (64, {}, 1, 24),
        (64, {}, 5, 4),
        (24, {}, 1, 24),
        (4, {}, 1, 4),
        (64, {"mixup": 0.2}, 5, 4),
        (64, {"mixup": 0.2}, 8, 2),
        (64, {"mixup": 0.2}, 24, 64),  # one image is none: the run will say so
    ],
)
def test_the_batch_shrinks_to_the_images(pictures, tmp_path, monkeypatch, capsys, batch_size, task, processes, fits):
    config = tiny_config(pictures, tmp_path / "run", data=dict(batch_size=batch_size))
    config = replace(config, task=ClassificationOptions(crop_ratio=1.0, **task))
    if processes > 1:
        monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert choose_rest(config, {"output"}, by_default=False).data.batch_size == fits
    assert (f"data.batch_size {fits} instead of 64" in capsys.readouterr().err) is (fits < batch_size)
    assert choose_rest(config, {"output", "data.batch_size"}, by_default=False) == config


def test_photographs_start_from_weights_where_they_can_be_had(pictures, tmp_path, weights, capsys):
    config = replace(RECIPES["finetune"](), data=DataConfig(str(pictures), batch_size=4))
    config = replace(config, output=replace(config.output, folder=str(tmp_path / "run")))
    weights.are_there = True
    assert choose_rest(config, (), by_default=True) == config
    weights.are_there = False
    fresh = choose_rest(config, (), by_default=True)
    assert (fresh.model.pretrained, fresh.loop.freeze_epochs, fresh.optimizer.layer_decay) == (False, 0, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("smt_tiny is trained from scratch")
    assert line.endswith("could not be downloaded (no network)")
    given = choose_rest(config, {"loop.freeze_epochs"}, by_default=True)
    assert (given.model.pretrained, given.loop.freeze_epochs) == (False, 1)
    weights.asked = 0
    assert choose_rest(config, {"model.pretrained"}, by_default=True) == config
    assert choose_rest(config, (), by_default=False) == config
    assert weights.asked == 0


def test_a_folder_that_cannot_be_written_is_noticed_before_anything_else(tmp_path, weights):
    (tmp_path / "file").touch()
    config = RECIPES["finetune"]()
    config = replace(config, output=replace(config.output, folder=str(tmp_path / "file" / "run")))
    with pytest.raises(OSError, match=r"run could not be written: .*file: Not a directory"):
        choose_rest(config, {"output"}, by_default=True)
    assert weights.asked == 0


def test_a_run_without_a_recipe_says_and_stores_what_it_does(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/smt_nano_small_images", "runs/smt_nano_small_images-2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").touch()
    words = ["--data", str(pictures), "--schedule.epochs", "2", "--output.no-tensorboard", "--loop.device", "cpu"]
    assert main(["train", *words, "--loop.validation-epochs", "2"]) == 0
    folder = tmp_path / "runs" / "smt_nano_small_images-3"
    out, err = capsys.readouterr()
    assert out == f"{folder}\n"
    lines = err.splitlines()
    assert lines[0].startswith(f"{pictures}: 24 training images of about 16 x 16 pixels, so recipe")
    assert lines[1].startswith("schedule.warmup_epochs 0.25 instead of 0.5")
    assert (
        lines[2]
        == f"runs/smt_nano_small_images holds something already; this run goes to {folder.relative_to(tmp_path)}"
    )
    assert lines[3] == f"data.batch_size 24 instead of 64: {pictures} has 24 training images"
    assert lines[4].startswith("smt_nano: 9")
    assert lines[4].endswith("images of 32 x 32 pixels, 2 epochs, 2 updates, from scratch")
    assert lines[5] == "images: 24 to train on in an epoch, 24 an update, 8 to validate on"
    assert lines[6] == "top-5 is always 100 % with 2 classes; look at top-1"
    config = stored_config(folder)
    assert (config.recipe, config.data.batch_size, config.schedule.warmup_epochs) == ("smt_nano_small_images", 24, 0.25)
    assert config.output.folder == str(folder)
    assert main(["train", "--resume", str(folder)]) == 0
    (first, *_) = capsys.readouterr().err.splitlines()
    assert first.endswith("going on from its checkpoint")
    assert stored_config(folder) == config
