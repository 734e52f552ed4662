"""`convattn convert` finds out by itself which model an official file is of."""

import json

import pytest
import torch

import convattn
from convattn.backbones.recognise import recognise
from convattn.cli.main import main
from convattn.model_files import load_model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cotnext_50", {"num_classes": 5}),
        ("se_cotnetd_152", {}),
        ("nextvit_small", {"num_classes": 0, "final_norm": False}),
        pytest.param("smt_tiny", {}, marks=pytest.mark.slow),  # as the row below
        ("smt_tiny", {"num_classes": 21841}),
        ("smt_small", {"in_chans": 1, "num_classes": 0}),
        pytest.param("smt_large", {}, marks=pytest.mark.slow),  # as the row below, which has an option too
        ("smt_large", {"layer_scale_init": 0.0, "num_classes": 5}),
    ],
)
def test_every_variant_is_recognised_with_its_options(name, options):
    with torch.device("meta"):
        state = convattn.to_official(convattn.create_model(name, **options))
    found = recognise(state)
    assert (found.name, dict(found.options)) == (name, options)


def test_a_detectors_backbone_becomes_a_model_without_a_final_norm(tmp_path, capsys):
    whole = convattn.create_model("nextvit_nano").eval()
    official = convattn.to_official(whole)
    dense = {f"backbone.{k}": v for k, v in official.items() if not k.startswith(("norm.", "proj_head."))}
    torch.save({"state_dict": dense, "meta": {}}, tmp_path / "backbone.pth")
    assert main(["convert", str(tmp_path / "backbone.pth"), str(tmp_path / "ours.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["options"]) == ("nextvit_nano", {"num_classes": 0, "final_norm": False})
    model, images = load_model(tmp_path / "ours.safetensors"), torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        want = whole.forward_intermediates(images, intermediates_only=True)
        final, levels = model.forward_intermediates(images)
    assert all(torch.equal(a, b) for a, b in zip(levels, want, strict=True))
    assert torch.equal(final, levels[-1])

    del official["norm.weight"]  # a classifier without its norm is no such file, but damaged
    torch.save(official, tmp_path / "damaged.pth")
    assert main(["convert", str(tmp_path / "damaged.pth"), str(tmp_path / "other.safetensors")]) == 1
    assert "closest is nextvit_nano, but norm.weight (192,) is missing in the file" in capsys.readouterr().err


def test_writes_a_model_file_of_the_same_numbers(tmp_path, capsys):
    model = convattn.create_model("smt_nano", num_classes=5).eval()
    torch.save({"model": convattn.to_official(model), "epoch": 3}, tmp_path / "official.pth")
    assert main(["convert", str(tmp_path / "official.pth"), str(tmp_path / "ours.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "smt_nano"
    assert found["options"] == {"num_classes": 5}
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "ours.safetensors")(images), model(images))


@pytest.mark.parametrize("name", ["resnet18_das", "mobilenetv2_das"])
def test_families_without_files_of_the_authors_are_recognised_by_our_names(name):
    with torch.device("meta"):
        state = convattn.create_model(name, num_classes=7).state_dict()
    found = recognise({"model": {f"module.{key}": tensor for key, tensor in state.items()}})
    assert (found.name, dict(found.options)) == (name, {"num_classes": 7})


def test_says_what_is_left_out(tmp_path, capsys):
    model = convattn.create_model("nextvit_nano_extra_norm", num_classes=5)
    torch.save({"model": convattn.to_official(model)}, tmp_path / "official.pth")
    assert main(["convert", str(tmp_path / "official.pth"), str(tmp_path / "ours.safetensors")]) == 0
    shown = capsys.readouterr()
    assert "left out, because the authors' code never reads it: extra_norm_list.3.weight, " in shown.out
    assert shown.err == ""


def test_bad_requests_are_refused_in_one_line(tmp_path, capsys):
    model = convattn.create_model("smt_nano", num_classes=5)
    state = convattn.to_official(model)
    state.pop("norm4.weight")
    torch.save(state, tmp_path / "lacking.pth")
    torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    target = str(tmp_path / "ours.safetensors")
    for source, message in [
        (
            "lacking.pth",
            "fits no model; the closest is smt_nano, but stages.3.norm.weight (160,) is missing in the file",
        ),
        ("foreign.pth", "not a checkpoint of any family here; its entries are layer1.weight"),
        ("nothing.pth", "nothing.pth: no such file"),
    ]:
        assert main(["convert", str(tmp_path / source), target]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["convert", str(tmp_path / "lacking.pth"), str(tmp_path / "ours.pth")]) == 2
    assert "the target must end in .safetensors" in capsys.readouterr().err
    assert not (tmp_path / "ours.safetensors").exists()
