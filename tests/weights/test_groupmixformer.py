"""GroupMixFormer's names and files: both ways, by hand, and with the options that a file turns out to have."""

import json

import pytest
import torch

import convattn
from convattn.backbones.recognise import recognise
from convattn.cli.main import main
from convattn.model_files import load_model, save_model
from convattn.weights.errors import WeightsNote
from convattn.weights.groupmixformer import GROUPMIXFORMER_NAMES
from convattn.weights.read import CheckpointError
from golden_file import official_shapes
from toys import build_toy

VARIANTS = ["mobile", "tiny", "small", "base", "large"]
TOY = dict(dims=(10, 20, 20, 30), depths=(1, 2, 3, 1), mlp_ratios=(2, 4, 2.5, 1), num_classes=7)


@pytest.fixture
def toy_file(tmp_path):
    """A model of unusual depths and widths, and its weights as the authors would have written them."""
    model = build_toy("groupmixformer_large", **TOY)
    path = tmp_path / "groupmixformer_large.pth"
    torch.save({"model": convattn.to_official(model)}, path)
    return model, path


def assert_same_weights(model, other):
    state = other.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("size", ["nano", *VARIANTS])
def test_every_name_has_one_counterpart(size):
    with torch.device("meta"):
        ours = list(convattn.create_model(f"groupmixformer_{size}").state_dict())
    theirs = [GROUPMIXFORMER_NAMES.to_theirs(name) for name in ours]
    assert None not in theirs
    assert len(set(theirs)) == len(ours)
    assert [GROUPMIXFORMER_NAMES.to_ours(name) for name in theirs] == ours


@pytest.mark.parametrize("size", VARIANTS)
def test_names_and_shapes_are_those_of_the_authors(size):
    with torch.device("meta"):
        ours = convattn.to_official(convattn.create_model(f"groupmixformer_{size}"))
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == official_shapes(f"groupmixformer_{size}")


@pytest.mark.parametrize("size", VARIANTS)
def test_pretrained_says_in_one_line_that_the_file_is_fetched_by_hand(size, monkeypatch, tmp_path):
    monkeypatch.delenv("CONVATTN_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    file = {"mobile": "groupmixformer_miny.pth"}.get(size, f"groupmixformer_{size}.pth")
    with pytest.raises(CheckpointError) as error:
        convattn.create_model(f"groupmixformer_{size}", pretrained=True)
    message = str(error.value)
    assert "\n" not in message and message.startswith("https://")
    assert all(part in message for part in (file, "by hand", "CONVATTN_WEIGHTS", "pretrained_path")), message


def test_a_file_fetched_by_hand_is_found_by_its_name(toy_file, monkeypatch):
    source, path = toy_file
    monkeypatch.setenv("CONVATTN_WEIGHTS", str(path.parent))
    assert_same_weights(convattn.create_model("groupmixformer_large", pretrained=True, **TOY), source)


def test_the_file_decides_depths_widths_and_ratios(toy_file, tmp_path):
    source, path = toy_file
    with pytest.warns(UserWarning, match=r"has dims=\(10, 20, 20, 30\), depths=\(1, 2, 3, 1\), mlp_ratios=.*, unlike"):
        model = convattn.create_model("groupmixformer_large", pretrained_path=str(path), num_classes=7)
    assert_same_weights(model, source)
    save_model(model, tmp_path / "saved.safetensors")
    assert_same_weights(load_model(tmp_path / "saved.safetensors"), source)
    with pytest.warns(WeightsNote) as caught:
        features = convattn.create_model("groupmixformer_large", pretrained_path=str(path), features_only=True)
    assert [str(note.message).partition(": ")[2][:40] for note in caught] == [
        "has dims=(10, 20, 20, 30), depths=(1, 2,",
        "the model ends before head.fc.weight, he",
    ]
    assert features.built_as["options"]["depths"] == (1, 2, 3, 1)


def test_options_that_were_given_stand(toy_file):
    _, path = toy_file
    with pytest.raises(CheckpointError, match=r"stages.1.blocks.1.* is in the file, not here"):
        convattn.create_model("groupmixformer_large", pretrained_path=str(path), **{**TOY, "depths": (1, 1, 3, 1)})


@pytest.mark.parametrize("size", ["nano", pytest.param("tiny", marks=pytest.mark.slow)])
def test_an_official_file_is_recognised_without_options(size):
    with torch.device("meta"):
        state = convattn.to_official(convattn.create_model(f"groupmixformer_{size}"))
    found = recognise(state)
    assert (found.name, dict(found.options)) == (f"groupmixformer_{size}", {})


def test_a_large_of_other_depths_is_recognised_as_such():
    depths = (7, 10, 31, 9)  # would have the published size
    with torch.device("meta"):
        model = convattn.create_model("groupmixformer_large", depths=depths)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(70.3, abs=0.05)
    found = recognise(convattn.to_official(model))
    assert (found.name, dict(found.options)) == ("groupmixformer_large", {"depths": depths})


def test_convert_reports_what_it_found(toy_file, tmp_path, capsys):
    source, path = toy_file
    assert main(["convert", str(path), str(tmp_path / "ours.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"]["depths"] == [1, 2, 3, 1]
    assert_same_weights(load_model(tmp_path / "ours.safetensors"), source)


def test_a_truncated_file_is_refused(toy_file, tmp_path, capsys):
    _, path = toy_file
    state = torch.load(path, weights_only=True)["model"]
    torch.save({key: t for key, t in state.items() if "gma_stage.0.cpe" not in key}, tmp_path / "lacking.pth")
    assert main(["convert", str(tmp_path / "lacking.pth"), str(tmp_path / "ours.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "fits no model; the closest is groupmixformer" in error and error.count("\n") == 1
