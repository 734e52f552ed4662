"""A model with options as a file: wherever a name is taken."""

import json

import pytest

import convattn
from convattn.cli.main import main
from convattn.config_errors import ConfigError
from convattn.model_configuration import read_configuration, write_configuration
from convattn.model_files import save_model
from convattn.training.config import ModelConfig
from toys import TOYS

OPTIONS = TOYS["hybrid"].options | {"depths": (1, 1, 2, 1)}


@pytest.fixture
def path(tmp_path):
    write_configuration(tmp_path / "mine.json", "hybrid", OPTIONS)
    return tmp_path / "mine.json"


def test_a_file_builds_what_its_options_build(path):
    assert read_configuration(path) == ("hybrid", OPTIONS)
    model = convattn.create_model(str(path), num_classes=3, depths=(1, 1, 1, 1))
    assert model.built_as["name"] == "hybrid"
    assert model.built_as["options"] == OPTIONS | {"num_classes": 3, "depths": (1, 1, 1, 1)}
    assert len(convattn.open_model(path, num_classes=5, pretrained=False).stages[2].blocks) == 2
    save_model(model, path.with_suffix(".safetensors"))
    path.unlink()  # the model's own file needs it no more
    assert convattn.open_model(path.with_suffix(".safetensors")).num_classes == 3


def test_a_run_says_all_of_it(path):
    config = ModelConfig(str(path), options={"depths": (1, 1, 1, 1)})
    assert (config.name, config.options) == ("hybrid", OPTIONS | {"depths": (1, 1, 1, 1)})


def test_a_command_describes_it(path, capsys):
    assert main(["models", str(path), "--image-size", "32", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == sum(p.numel() for p in convattn.create_model("hybrid", **OPTIONS).parameters())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no configuration of a model: No such file or directory"),
        ("{", "no configuration of a model: Expecting property name"),
        ("[]", r'no configuration of a model; it must be \{"name": NAME, "options": \{…\}\}'),
        ('{"name": "hybrid"}', "no configuration of a model; it must be"),
        ('{"name": "x.json", "options": {}}', "its model is 'x.json', another file; name the model itself"),
        ('{"name": "hybrid", "options": {"checkpoint_path": "x"}}', "option 'checkpoint_path' of hybrid says nothing"),
        ('{"name": "hybrid", "options": {"depth": 1}}', "unknown option 'depth' of hybrid; nearest: depths"),
        ('{"name": "hybird", "options": {}}', "unknown model 'hybird'; nearest: hybrid"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(text, message, tmp_path):
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        convattn.create_model(str(path))
    assert "\n" not in str(caught.value)
    if "configuration" in message:
        assert isinstance(caught.value, ConfigError)
