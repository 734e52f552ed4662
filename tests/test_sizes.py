"""Every door takes a size in the same three forms, and the error names them."""

import pytest
import torch
from torch import nn

import convattn
from convattn.bench.runtimes import Setting
from convattn.cli.main import main
from convattn.data.digits import open_digits
from convattn.sizes import image_shape, input_shape, size_of_words
from convattn.training.config import DataConfig, RunConfig
from convattn.training.config_json import config_from_json, config_to_json
from toys import build_toy

FORMS = r"must be a side, \(height, width\) or \(channels, height, width\), each 1 or more"


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (32, (3, 32, 32)),
        ((32,), (3, 32, 32)),
        ((32, 48), (3, 32, 48)),
        ([1, 32, 48], (1, 32, 48)),
        (torch.Size([4, 5]), (3, 4, 5)),
    ],
)
def test_three_forms(size, shape):
    assert image_shape(size) == shape


@pytest.mark.parametrize(
    "size", [0, -1, 2.5, "224", "32", None, (), (3, 0, 32), (1, 3, 32, 32), (32, None), (32.0, 32)]
)
def test_what_is_no_size_is_refused_in_one_line(size):
    for door in (
        image_shape,
        lambda size: Setting(image_size=size),
        lambda size: DataConfig(image_size=size) if size is not None else image_shape(size),
        lambda size: open_digits("val", size),
        lambda size: size is not None and convattn.count(nn.ReLU(), size),
        lambda size: size is not None and convattn.attach(nn.Sequential(nn.ReLU()), "se", where=["0"], input_size=size),
    ):
        if size is None and door is not image_shape:
            continue
        with pytest.raises(ValueError, match=FORMS):
            door(size)


@pytest.mark.parametrize(
    ("words", "size"),
    [("32", 32), ("32 48", (32, 48)), ("32x48", (32, 48)), ("3 32 48", (3, 32, 48)), ("1x32x48", (1, 32, 48))],
)
def test_three_forms_in_words(words, size):
    assert size_of_words(words.split(" ")) == size


@pytest.mark.parametrize("words", ["", "0", "32 0", "-1", "2x", "x", "3a", "2.5", "1 3 32 32", "32  48", "32,48"])
@pytest.mark.parametrize(
    "command",
    [
        "models smt_nano --image-size",
        "export smt_nano model.pt2 --image-size",
        "train --data digits --data.image-size",
        "bench smt_nano --size",
    ],
)
def test_words_that_are_no_size_are_bad_usage(command, words, capsys):
    if command.startswith("bench") and words in ("", "32,48"):  # there a comma stands between sizes
        return
    given = words.split(" ") if words and not command.startswith("bench") else [words]
    assert main([*command.split(), *given]) == 2
    error = capsys.readouterr().err
    assert "must be a side, (height, width) or (channels, height, width), each 1 or more, such as" in error
    assert error.count("\n") == 1


def test_a_run_has_one_spelling_of_a_size():
    sizes = 24, (24, 24), [3, 24, 24], (24, 32), (3, 24, 32), None
    assert [DataConfig(image_size=size).image_size for size in sizes] == [24, 24, 24, (24, 32), (24, 32), None]
    for size in sizes:
        config = RunConfig(data=DataConfig(image_size=size))
        assert config_from_json(config_to_json(config)) == config
    assert config_from_json('{"data": {"image_size": 24}}').data.image_size == 24  # as runs of earlier versions have it
    assert config_from_json('{"data": {"image_size": [3, 24, 32]}}').data.image_size == (24, 32)
    with pytest.raises(ValueError, match=r"^data.image_size \(1, 24, 24\): images are read in 3 channels; give height"):
        DataConfig(image_size=(1, 24, 24))


def test_digits_are_of_any_size():
    assert {open_digits("val", size).read(0).size for size in (16, (16, 16), (3, 16, 16))} == {(16, 16)}
    assert open_digits("val", (16, 24)).read(0).size == (24, 16)  # Pillow says width first


def test_the_model_says_what_is_not_given():
    grey = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3))
    assert input_shape(grey, 16) == (1, 16, 16)
    assert input_shape(grey, (3, 16, 16)) == (3, 16, 16)
    assert input_shape(build_toy("smt_nano", in_chans=4)) == (4, 32, 32)
    assert input_shape(nn.ReLU(), 8) == (3, 8, 8)
    with pytest.raises(
        ValueError, match=r"^ReLU does not say what input it expects; give input_size: a side, \(height"
    ):
        input_shape(nn.ReLU())


def test_one_size_counts_and_traces_alike_in_every_form():
    conv = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert {convattn.count(conv, size).macs for size in (8, (8, 8), (3, 8, 8))} == {3 * 4 * 64}
    assert convattn.count(conv, (8, 16)).macs == 3 * 4 * 128
    for size in (8, (8, 8), (3, 8, 8)):
        assert convattn.attach(conv, "se", where=["0"], input_size=size)(torch.rand(1, 3, 8, 8)).shape == (1, 4, 8, 8)


def test_a_benchmark_is_of_any_size():
    assert Setting(image_size=(224, 224)) == Setting(image_size=[3, 224, 224]) == Setting(image_size=224)
    assert str(Setting(image_size=(224, 320))) == "batch 1, 224 x 320 px, fp32, cpu"
    assert Setting(batch_size=2, image_size=(1, 8, 8)).size_text == "1 x 8 x 8"
    table = convattn.benchmark(
        ["smt_nano"], runtimes=["eager"], image_sizes=(32, (32, 48)), repeats=1, warmup=0, memory=False, reference=None
    )
    square, wide = table.rows
    assert (square.setting.image_size, wide.setting.image_size) == (32, (3, 32, 48))
    assert wide.macs > square.macs
