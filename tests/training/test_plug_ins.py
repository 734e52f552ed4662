"""Blocks that a run attaches to its model."""

from dataclasses import replace

import pytest
import torch

import convattn
from convattn.config_errors import ConfigError
from convattn.training.build import build_model_and_data
from convattn.training.config_json import config_from_json, config_to_json
from convattn.training.loop import train
from convattn.training.plug_ins import with_plug_ins
from convattn.training.processes import Processes
from tiny_detection import tiny_detection, write_objects
from tiny_runs import tiny_config, write_pictures
from tiny_segmenters import tiny_segmentation, write_masks

SE = {"kind": "attach", "mixer": "se", "where": "stages", "init": "paper"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=4, val=2)


def built(config):
    return build_model_and_data(config, Processes(config.loop))[1]


def test_a_run_trains_saves_and_resumes_with_them(pictures, tmp_path):
    parts = dict(model=dict(plug_ins=({**SE, "frozen": True},)), schedule=dict(epochs=1, warmup_epochs=0))
    config = tiny_config(pictures, tmp_path / "run", **parts)
    assert config_from_json(config_to_json(config)) == config
    start = built(config)
    learning = {"attached" in name: parameter.requires_grad for name, parameter in start.named_parameters()}
    assert learning == {True: False, False: True}
    folder = train(config)
    assert [entry["mixer"] for entry in convattn.open_model(folder).surgery] == ["se"] * 4
    assert train(replace(config, loop=replace(config.loop, max_skipped=9)), resume=True) == folder


def test_a_base_keeps_its_weights(pictures, tmp_path):
    torch.manual_seed(3)
    base = built(tiny_config(pictures, tmp_path / "a"))
    torch.manual_seed(3)
    gated = built(tiny_config(pictures, tmp_path / "b", model=dict(plug_ins=(SE,))))
    own = gated.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in base.state_dict().items())
    assert len(own) > len(base.state_dict())


@pytest.mark.filterwarnings("ignore:.*names the 3 classes")
def test_a_segmenter_takes_them_in_its_backbone(tmp_path):
    source = write_masks(tmp_path / "masks", train=4)
    model = built(tiny_segmentation(source, tmp_path / "run", model=dict(plug_ins=(SE,))))
    assert {entry["place"].partition(".")[0] for entry in model.surgery} == {"backbone"}


def test_a_detector_takes_them_in_its_backbone(tmp_path):
    source = write_objects(tmp_path / "objects")
    model = built(tiny_detection(source, tmp_path / "run", model=dict(plug_ins=(SE,))))
    assert {entry["place"].partition(".")[0] for entry in model.surgery} == {"backbone"}


@pytest.mark.parametrize(
    ("plug_in", "message"),
    [
        ({"mixer": "see"}, "resnet does not take see: unknown mixer 'see'; nearest: se, ese"),
        ({"mixer": "se", "places": "stages"}, "model.plug_ins: unknown field 'places'; known: frozen"),
        ({"kind": "add", "mixer": "se"}, "kind 'add' is unknown; choose attach or replace"),
        ({"mixer": "se", "where": "*.nothing"}, "the function given as where chose none of the"),
        ({"kind": "replace", "mixer": "cot", "where": "*.x"}, "has no convolution that the function"),
    ],
)
def test_what_does_not_fit_is_named(plug_in, message):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, stride=2), torch.nn.ReLU())
    with pytest.raises(ConfigError, match=message.replace("*", ".*")):
        with_plug_ins(model, (plug_in,), "resnet")


def test_replaced_convolutions_are_chosen_by_name():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3), torch.nn.Conv2d(16, 16, 1))
    changed = with_plug_ins(model, ({"kind": "replace", "mixer": "se", "where": "[12]", "frozen": True},), "net")
    assert [entry["place"] for entry in changed.surgery] == ["1", "2"]
    assert [p.requires_grad for p in changed.parameters()].count(True) == 2
    assert type(model[1]) is torch.nn.Conv2d
