"""The authors' checkpoints into our models and back: strictly, and with a list of what does not fit."""

import pytest
import safetensors.torch
import timm
import torch
from official_files import TOY, official_toy, save_with_yacs_node

import convattn
from convattn.weights.read import CheckpointError
from toys import build_toy, toy, toy_images


def assert_same_weights(model, other):
    state = other.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def snapshot(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_round_trip_by_state_dict():
    source, state = official_toy()
    target = build_toy(TOY)
    assert convattn.load_official(target, state) is target
    assert_same_weights(target, source)


def test_file_as_the_training_script_writes_it(tmp_path):
    source, state = official_toy()
    path = tmp_path / "ckpt_epoch_299.pth"
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    save_with_yacs_node({"model": state, "optimizer": optimizer, "epoch": 299, "max_accuracy": 82.2}, path)
    assert_same_weights(convattn.load_official(build_toy(TOY), path), source)


def test_file_of_a_distributed_run(tmp_path):
    source, state = official_toy()
    path = tmp_path / "ddp.pth"
    torch.save({"model": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
    assert_same_weights(convattn.load_official(build_toy(TOY), path), source)


def test_names_of_the_detection_repository(tmp_path):
    source, state = official_toy(num_classes=0)
    renamed = {f"backbone.{k.replace('.attn.local_conv.', '.attn.dw_conv.')}": tensor for k, tensor in state.items()}
    assert any(".dw_conv." in key and ".attn." in key for key in renamed)
    path = tmp_path / "detection.pth"
    torch.save({"state_dict": renamed, "meta": {"epoch": 36}}, path)
    assert_same_weights(convattn.load_official(build_toy(TOY, num_classes=0), path), source)


def test_our_own_names_and_safetensors_are_taken_too(tmp_path):
    source, state = official_toy()
    for index, weights in enumerate((source.state_dict(), state)):
        path = tmp_path / f"{index}.safetensors"
        safetensors.torch.save_file(weights, path)
        assert_same_weights(convattn.load_official(build_toy(TOY), path), source)


def test_features_only_model_takes_the_backbone():
    source, state = official_toy(num_classes=0)
    features = convattn.create_model(TOY, features_only=True, **toy(TOY).options).eval()
    convattn.load_official(features, state)
    images = toy_images(TOY)
    with torch.no_grad():
        levels = source.forward_intermediates(images, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(features(images), levels, strict=True))


# What does not fit


def test_another_number_of_classes_is_listed_and_nothing_is_loaded():
    _, state = official_toy()
    model = build_toy(TOY, num_classes=3)
    before = snapshot(model)
    message = (
        r"does not fit smt_large \(3 classes\): head.fc.weight is \(7, 24\) in the file, \(3, 24\) here; head.fc.bias"
    )
    with pytest.raises(CheckpointError, match=message) as error:
        convattn.load_official(model, state)
    assert str(error.value).endswith("load what fits with strict=False") and "\n" not in str(error.value)
    assert_unchanged(model, before)


def test_another_number_of_channels_is_listed():
    _, state = official_toy()
    with pytest.raises(CheckpointError, match=r"stem.conv1.weight is \(8, 3, 7, 7\) in the file, \(8, 1, 7, 7\) here"):
        convattn.load_official(build_toy(TOY, in_chans=1), state)


def test_missing_and_unexpected_entries_are_listed():
    _, state = official_toy()
    del state["block1.0.gamma_1"]
    state["block1.0.attn.rel_pos"] = torch.ones(4, 5)
    model = build_toy(TOY)
    before = snapshot(model)
    with pytest.raises(CheckpointError) as error:
        convattn.load_official(model, state)
    assert "stages.0.blocks.0.layer_scale1.gamma (8,) is missing in the file" in str(error.value)
    assert "block1.0.attn.rel_pos (4, 5) is in the file, not here" in str(error.value)
    assert_unchanged(model, before)


def test_not_strict_loads_what_fits_and_warns_with_the_list():
    source, state = official_toy()
    model = build_toy(TOY, num_classes=3)
    head = snapshot(model.head)
    with pytest.warns(UserWarning, match=r"left out of smt_large \(3 classes\): head.fc.weight is \(7, 24\)"):
        convattn.load_official(model, state, strict=False)
    assert_unchanged(model.head, head)
    assert_same_weights(model.stages, source.stages)


def test_a_long_list_is_cut_with_its_length():
    _, state = official_toy()
    with pytest.raises(CheckpointError, match=r"; and \d+ more; load what fits"):
        convattn.load_official(convattn.create_model("smt_nano", num_classes=7), state)


def test_a_checkpoint_of_another_model_is_named_as_such(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t", num_classes=2).state_dict(), path)
    model = build_toy(TOY)
    for strict in (True, False):
        with pytest.raises(
            CheckpointError, match=r"not a checkpoint of smt_large \(7 classes\): its entries are conv1"
        ):
            convattn.load_official(model, path, strict=strict)


def test_a_model_without_the_authors_files():
    with pytest.raises(CheckpointError, match=r"not a checkpoint of resnet10t \(2 classes\): its entries are a, …"):
        convattn.load_official(timm.create_model("resnet10t", num_classes=2), {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"DASResNet has no official checkpoint; families: .*smt"):
        convattn.to_official(build_toy("resnet18_das"))


def test_to_official_refuses_what_the_authors_model_lacks():
    model = build_toy(TOY)
    model.stages[0].blocks[0].gate = torch.nn.Linear(2, 2)
    with pytest.raises(
        CheckpointError, match=r"stages.0.blocks.0.gate.weight of .* has no counterpart in the authors' model"
    ):
        convattn.to_official(model)


def test_a_scalar_where_a_tensor_belongs_is_listed_by_shape():
    model = convattn.create_model("smt_nano", num_classes=5)
    state = convattn.to_official(model) | {"norm4.weight": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match=r"stages.3.norm.weight is \(\) in the file, \(160,\) here"):
        convattn.load_official(model, state)
