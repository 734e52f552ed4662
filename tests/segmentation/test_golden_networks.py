"""Heads, losses and whole segmenters against what the field's reference gave with the same weights, in float64."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import convattn
from convattn.backbones.levels import level_maps
from convattn.segmentation.loss import pixel_accuracy, pixel_losses
from convattn.segmentation.resize import resized
from convattn.segmentation.segmenter import Segmenter, create_segmenter
from segmentation_golden import Golden, image, labels, levels, load_golden
from segmentation_toys import GivenLevels

HEADS = ["upernet_even", "upernet_odd", "upernet_floor", "semantic_fpn_even", "semantic_fpn_odd"]
BAR = 1e-9


def segmenter_of(golden: Golden, maps: list[Tensor]) -> Segmenter:
    meta = golden.meta
    width = meta["neck_channels" if meta["kind"] == "semantic_fpn" else "channels"]
    model = create_segmenter(GivenLevels(maps), meta["kind"], meta["classes"], width=width)
    if meta["kind"] == "upernet":  # of the file's widths, which are not half as many
        model.auxiliary_head = type(model.auxiliary_head)(
            meta["in_channels"][2], meta["aux_channels"], meta["classes"], 0.1
        )
    else:
        head = type(model.decode_head)
        model.decode_head = head(width, meta["feature_strides"], meta["channels"], meta["classes"], 0.1)
    model.double()
    return convattn.load_official(model, golden.state())


@pytest.fixture(params=HEADS)
def golden(request):
    return load_golden(request.param)


@pytest.fixture
def maps(golden):
    return [each.requires_grad_() for each in levels(golden.meta["level_shapes"], golden.salt)]


@pytest.fixture
def model(golden, maps):
    model = segmenter_of(golden, maps)
    model.backbone.maps = maps  # not the copies
    return model


def images_of(golden):
    return torch.empty(golden.meta["batch"], 3, *golden.meta["image"], dtype=torch.float64)


def labels_of(golden):
    return labels(golden.meta["batch"], *golden.meta["image"], golden.meta["classes"], golden.salt)


def outputs_of(model: Segmenter, images: Tensor) -> dict[str, Tensor]:
    """What a head gives that evaluates, which a model that trains adds up its losses of."""
    maps = level_maps(model.backbone, images, model.levels)
    outputs = {"decode": model.decode_head(maps if model.neck is None else model.neck(maps))}
    if model.auxiliary_head is not None:
        outputs["auxiliary"] = model.auxiliary_head(maps[2])
    return outputs


def test_the_weights_of_the_reference_are_all_there_and_no_others(golden, model):
    ours = convattn.to_official(model)
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == golden.shapes
    assert sum(parameter.numel() for parameter in model.parameters()) == golden.meta["params"]


@torch.no_grad()
def test_logits_agree(golden, model):
    model.eval()
    outputs = outputs_of(model, images_of(golden))
    assert golden.error("logits", outputs["decode"]) < BAR
    if "auxiliary" in outputs:
        assert golden.error("aux_logits", outputs["auxiliary"]) < BAR
    logits = model(images_of(golden))
    assert golden.error("image_logits", logits) < BAR
    probability = resized(logits, golden.meta["original"]).softmax(1)
    assert golden.error("probability", probability) < BAR
    assert golden.error("probability_flipped", probability.flip(-1)) < BAR
    assert golden.error("prediction", probability.argmax(1)) == 0


@torch.no_grad()
@pytest.mark.parametrize("golden", ["semantic_fpn_even", "semantic_fpn_odd"], indirect=True)
def test_maps_of_the_neck_agree(golden, model):
    for index, each in enumerate(model.eval().neck(model.backbone.maps)):
        assert golden.error(f"neck{index}", each) < BAR


def test_losses_and_their_gradients_agree(golden, model, maps):
    outputs, wanted = outputs_of(model.eval(), images_of(golden)), labels_of(golden)
    losses = pixel_losses(outputs, wanted)
    valid = pixel_losses(outputs, wanted, mean="valid")
    for head, name in (("decode", "decode"), ("auxiliary", "aux")):
        if head in outputs:
            assert golden.error(f"{name}_loss_ce", losses[f"{name}.loss_ce"]) < BAR
            assert golden.error(f"{name}_loss_ce_non_ignore", valid[f"{name}.loss_ce"]) < BAR
            assert golden.error(f"{name}_acc_seg", pixel_accuracy(outputs[head], wanted)) < BAR
    assert len(losses) == len(outputs)
    loss = sum(losses.values())
    assert golden.error("loss", loss) < BAR
    loss.backward()
    for index, each in enumerate(maps):
        assert golden.error(f"grad_level{index}", each.grad) < BAR
    gradients = {name: parameter.grad.norm() for name, parameter in official_parameters(model).items()}
    assert golden.error("grad_norms", torch.stack([gradients[n] for n in golden.shapes if n in gradients])) < BAR


def official_parameters(model: Segmenter) -> dict[str, nn.Parameter]:
    return {model.official_names.to_theirs(name): parameter for name, parameter in model.named_parameters()}


def test_norms_measure_a_training_batch_alike(golden, model):
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    losses = pixel_losses(model.train()(images_of(golden)), labels_of(golden))
    assert golden.error("train_loss", sum(losses.values())) < BAR
    state = convattn.to_official(model)
    for key, leaf in (("train_running_means", "running_mean"), ("train_running_vars", "running_var")):
        measured = [state[name] for name in golden.shapes if name.endswith(leaf)]
        assert golden.error(key, torch.cat(measured)) < BAR


WHOLE = [
    "whole_nextvit_small_semantic_fpn",
    pytest.param("whole_smt_small_upernet", marks=pytest.mark.slow),
    pytest.param("whole_nextvit_small_upernet", marks=pytest.mark.slow),
]


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_segmenter_agrees_through_the_authors_file(name):
    golden = load_golden(name)
    meta = golden.meta
    model = create_segmenter(meta["model"], meta["head"], dtype=torch.float64).eval()
    assert len(golden.shapes) == meta["entries"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convattn.load_official(model, {"meta": {"CLASSES": ()}, "state_dict": golden.state(), "optimizer": {}})
    said = [str(warning.message) for warning in caught]
    if "nextvit" in name:  # entries that the authors' code never reads
        assert len(said) == 1
        assert "backbone.extra_norm_list.3.weight" in said[0]
        assert "the model ends before backbone.head.fc.weight, backbone.head.fc.bias, left aside" in said[0]
    else:
        assert said == []
    images = image(1, *meta["image"], golden.salt)
    maps = level_maps(model.backbone, images, model.levels)
    errors = {f"level{index}": golden.error(f"level{index}", each) for index, each in enumerate(maps)}
    outputs = outputs_of(model, images)
    errors["logits"] = golden.error("logits", outputs["decode"])
    if "auxiliary" in outputs:
        errors["aux_logits"] = golden.error("aux_logits", outputs["auxiliary"])
    probability = resized(model(images), meta["original"]).softmax(1)
    errors["probability"] = golden.error("probability", probability)
    assert max(errors.values()) < BAR, errors
    assert golden.error("prediction", probability.argmax(1)) == 0
    theirs = {entry: shape for entry, shape in golden.shapes.items() if "proj_head" not in entry}
    written = convattn.to_official(model)
    aliases = {".attn.local_conv.": ".attn.dw_conv."} if "smt" in name else {}
    assert {respelled(entry, aliases, theirs): tuple(t.shape) for entry, t in written.items()} == theirs


def respelled(name: str, aliases: dict[str, str], known: dict[str, tuple[int, ...]]) -> str:
    for ours, alias in aliases.items():
        name = name.replace(ours, alias) if name not in known else name
    return name
