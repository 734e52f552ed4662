"""`data.evaluations`: further images on which a run is judged at each validation, without a say in what is kept."""

import io
import math

import pytest
import torch
from PIL import Image
from rich.console import Console
from torchvision.transforms.functional import pil_to_tensor

from convattn.classification.evaluate import evaluate
from convattn.classification.real_labels import RealDataset, RealLabels, RealScores
from convattn.config_errors import ConfigError
from convattn.data.dataset import DataError
from convattn.data.loader import Samples, evaluation_loader
from convattn.data.sources import open_evaluation
from convattn.data.transforms import PictureAlone, transforms_for
from convattn.model_files import load_model
from convattn.report.run import write_run_report
from convattn.training.checkpoint import checkpoint_folders
from convattn.training.loop import train
from convattn.training.unreadable import UnreadableError
from tiny_runs import figures, tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def turned(tmp_path):
    """Pictures of which half are filed under the other class, and one cannot be read."""
    folder = write_pictures(tmp_path / "turned", train=1, val=101) / "val"
    for number in range(50):
        (folder / "dark" / f"{number:03d}.png").rename(folder / "bright" / f"night_{number:03d}.png")
    (folder / "dark" / "100.png").write_bytes(b"")
    return folder


def test_each_has_its_figures_in_log_and_page(pictures, turned, tmp_path):
    told = io.StringIO()
    config = tiny_config(pictures, tmp_path / "run", data=dict(evaluations=(f"turned={turned}", f"again={pictures}")))
    folder = train(config, console=Console(file=told, width=400), on_validation=write_run_report)
    log = figures(folder)
    assert len(log) == 2
    for entry in log:
        for name in ("top1", "top5", "val_loss"):  # the validation images once more
            assert entry[f"again/{name}"] == pytest.approx(entry[name])
    data = open_evaluation(str(turned), 16)
    model = load_model(folder / "last.safetensors")
    found = evaluate(model, evaluation_loader(Samples(data, PictureAlone(transforms_for(model))), batch_size=8))
    assert log[-1]["turned/top1"] == pytest.approx(found.top1)
    assert log[-1]["turned/val_loss"] == pytest.approx(found.loss, rel=1e-4)
    broken = f"left out of turned: {turned / 'dark' / '100.png'}: the file is empty"
    assert told.getvalue().count(broken) == 1
    page = (folder / "report.html").read_text()
    assert "turned" in page
    assert "again" in page


def test_they_have_no_say_in_what_is_learnt_and_kept(pictures, turned, tmp_path):
    (turned / "dark" / "100.png").unlink()
    runs = []
    for name, evaluations in (("alone", ()), ("judged", (f"turned={turned}",))):
        runs.append(train(tiny_config(pictures, tmp_path / name, data=dict(evaluations=evaluations))))
    for name in ("last.safetensors", "best.safetensors"):
        weights = [load_model(run / name).state_dict() for run in runs]
        assert all(value.equal(weights[1][key]) for key, value in weights[0].items())
    assert figures(runs[0]) == [
        {key: value for key, value in entry.items() if "/" not in key} for entry in figures(runs[1])
    ]


def test_too_many_that_cannot_be_read_end_the_run(pictures, turned, tmp_path):
    for number in range(90, 100):
        (turned / "dark" / f"{number:03d}.png").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"11 of 202 images of turned cannot be read, more than 1%"):
        train(tiny_config(pictures, tmp_path / "run", data=dict(evaluations=(f"turned={turned}",))))
    assert [folder.name for folder in checkpoint_folders(tmp_path / "run")] == ["epoch_00001_image_000000000"]


def test_images_of_other_classes_are_refused_before_training(pictures, tmp_path):
    (write_pictures(tmp_path / "other") / "val" / "dark").rename(tmp_path / "other" / "val" / "night")
    config = tiny_config(pictures, tmp_path / "run", data=dict(evaluations=(f"other={tmp_path / 'other'}",)))
    with pytest.raises(DataError, match=r"class 'night' of the data is unknown to the model, which knows bright, dark"):
        train(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("photos/blurred",), r"data.evaluations 'photos/blurred' must be NAME=SOURCE, as in robust=photos/blurred"),
        (("robust=",), r"data.evaluations 'robust=' must be NAME=SOURCE"),
        (("two words=a",), r"data.evaluations 'two words=a' must be NAME=SOURCE"),
        (("a/b=c",), r"data.evaluations 'a/b=c' must be NAME=SOURCE"),
        (("a=b", "a=c"), r"data.evaluations a, a: each needs a name of its own"),
    ],
)
def test_other_words_are_refused(pictures, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(pictures, tmp_path / "run", data=dict(evaluations=words))


class Numbered:
    """ImageNet's first validation images, without files."""

    paths = tuple(f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3))

    def __len__(self):
        return len(self.paths)

    def read(self, index):
        return Image.new("RGB", (8, 8), (index, 0, 0))


def test_reassessed_labels_count_any_class_of_an_image_and_pass_over_those_without():
    data = RealDataset(Numbered(), RealLabels([[3, 5], [], [7], *[[0]] * 49_997]))
    (batch,) = evaluation_loader(Samples(data, PictureAlone(pil_to_tensor)), batch_size=3)
    meter = RealScores()
    assert math.isnan(meter.result(meter.parts())["top1"])
    meter.update(torch.nn.functional.one_hot(torch.tensor([5, 5, 5]), 1000).float(), batch)
    assert meter.result(meter.parts()) == {"top1": 50.0}  # the first is right, the second has no label


def test_reassessed_labels_are_for_imagenets_images(pictures, tmp_path):
    config = tiny_config(pictures, tmp_path / "run", data=dict(evaluations=("real=real:timm",)))
    with pytest.raises(DataError, match=r"ReaL labels go by the names of ImageNet's validation images"):
        train(config)
