"""Whole files of mmdetection and detrex: read and written by name, and a file of the other flavour told."""

import warnings

import pytest
import torch

import convattn
from convattn.detection.create import create_detector
from convattn.weights.errors import CheckpointError, WeightsNote
from convattn.weights.query_detectors import DETREX_DINO_NAMES
from query_golden import load_golden
from tiny_detectors import QUERIES, QUERY_IDS

GOLDEN = {"sparse_rcnn": "sparse", "dino-detrex": "dino_detrex", "dino-mmdet": "dino_mmdet"}
FEW = {"sparse_rcnn": dict(proposals=5), "dino": dict(queries=7)}
every_form = pytest.mark.parametrize(("name", "options"), QUERIES, ids=QUERY_IDS)


def small(name, classes=3, **options):
    """On a backbone whose authors have names of their own."""
    sizes = dict(width=32, hidden=16, layers=2) | FEW[name]
    return create_detector("cotnet_nano", name, classes, **(sizes | options), dims=(8,) * 4, stem="conv")


def of_heads(file):
    return {entry: tensor for entry, tensor in file.items() if not entry.startswith("backbone.")}


def assert_same_weights(model, other):
    state = other.state_dict()
    assert all(torch.equal(tensor, state[entry]) for entry, tensor in model.state_dict().items())


@every_form
def test_names_are_the_references(name, options):
    golden = load_golden(
        GOLDEN["-".join((name, *options.values())) if options else {"dino": "dino-detrex"}.get(name, name)]
    )
    layers = golden.config.get("stages") or golden.config["decoder_layers"]
    own = of_heads(convattn.to_official(small(name, layers=layers, **options)))
    neck = {entry for entry in own if name == "sparse_rcnn" and entry.startswith("neck.")}
    assert len(neck) == (16 if name == "sparse_rcnn" else 0)
    wanted = {*golden.shapes} | {DETREX_DINO_NAMES.second_of(entry) or entry for entry in golden.shapes}
    assert {*own} - neck == (wanted if name == "dino" and not options else {*golden.shapes})


def test_a_whole_file_has_as_many_entries_as_detrex_writes():
    with torch.device("meta"):
        heads = of_heads(convattn.to_official(create_detector("cotnet_nano", "dino", dims=(8,) * 4, stem="conv")))
        sparse = of_heads(
            convattn.to_official(create_detector("cotnet_nano", "sparse_rcnn", dims=(8,) * 4, stem="conv"))
        )
    assert len(heads) == 369
    assert len([entry for entry in sparse if entry.startswith("roi_head.bbox_head.5.")]) == 40


@every_form
def test_whole_files_are_read_and_written(name, options, tmp_path):
    model, other = (small(name, **options) for _ in range(2))
    file, detrex = convattn.to_official(model), name == "dino" and not options
    beside = {"data_preprocessor.mean": torch.zeros(3), "data_preprocessor.std": torch.zeros(3)}
    torch.save({"model" if detrex else "state_dict": file | beside, "meta": {"epoch": 12}}, tmp_path / "epoch_12.pth")
    with pytest.warns(WeightsNote, match="never reads it: data_preprocessor.mean, data_preprocessor.std") as said:
        convattn.load_official(other, tmp_path / "epoch_12.pth")
    twice = "there a second time, with the same numbers: transformer.decoder.class_embed.0.weight, "
    assert [twice in str(note.message) for note in said] == [detrex]
    assert_same_weights(model, other)
    assert_same_weights(model, convattn.load_official(small(name, **options), model.state_dict()))


def test_branches_that_stand_in_a_file_once_are_read_from_either_place():
    model = small("dino")
    file = convattn.to_official(model)
    seconds = {entry for entry in file if DETREX_DINO_NAMES.first_of(entry)}
    firsts = {DETREX_DINO_NAMES.first_of(entry) for entry in seconds}
    assert len(seconds) == len(firsts) == 3 * (2 + 6)
    for left in (firsts, seconds):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            once = {entry: tensor for entry, tensor in file.items() if entry not in left}
            assert_same_weights(model, convattn.load_official(small("dino"), once))
    backwards = dict(reversed(file.items()))
    with pytest.warns(WeightsNote, match="a second time"):
        assert_same_weights(model, convattn.load_official(small("dino"), backwards))
    file["transformer.decoder.class_embed.1.bias"] = torch.ones(3)
    with pytest.raises(
        CheckpointError, match=r"transformer.decoder.class_embed.1.bias \(3,\) is in the file, not here"
    ):
        convattn.load_official(small("dino"), file)


@pytest.mark.parametrize(("own", "theirs"), [("detrex", "mmdet"), ("mmdet", "detrex")])
def test_a_file_of_the_other_flavour_is_told(own, theirs):
    model = small("dino", flavour=own)
    before = {entry: tensor.clone() for entry, tensor in model.state_dict().items()}
    file = convattn.to_official(small("dino", flavour=theirs))
    told = (
        rf"^state dict: not a checkpoint of dino_\S+ \(3 classes\), but of one with flavour='{theirs}', and this one "
    )
    told += rf"has flavour='{own}'; build it with flavour='{theirs}'$"
    for one in (file, of_heads(file)):
        with pytest.raises(CheckpointError, match=told):
            convattn.load_official(model, one)
    assert all(torch.equal(tensor, before[entry]) for entry, tensor in model.state_dict().items())
    with pytest.warns(WeightsNote, match=rf"not of dino_\S+ \(3 classes\), but of one with flavour='{theirs}'"):
        convattn.load_official(model, file, strict=False)


@every_form
def test_what_does_not_fit_is_told_in_a_line(name, options):
    model = small(name, **options)
    with pytest.raises(CheckpointError, match="the file has 5 classes; build the model with num_classes=5"):
        convattn.load_official(model, of_others(small(name, 5, **options)))
    file = of_others(model)
    lost = next(entry for entry in file if "decoder.norm" in entry or "attention_norm" in entry)
    with pytest.raises(CheckpointError, match=r"head.\S+ \(32,\) is missing in the file; load what fits with strict="):
        convattn.load_official(model, {entry: tensor for entry, tensor in file.items() if entry != lost})
    with pytest.raises(CheckpointError, match=r"transformer.surplus \(1,\) is in the file, not here"):
        convattn.load_official(model, file | {"transformer.surplus": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"nothing of (neck and )?head is in the file"):
        convattn.load_official(model, {entry: tensor for entry, tensor in file.items() if entry not in of_heads(file)})


def of_others(model):
    """Its file without what stands there twice."""
    return {
        entry: tensor
        for entry, tensor in convattn.to_official(model).items()
        if ".decoder.class_embed" not in entry and ".decoder.bbox_embed" not in entry
    }


@every_form
def test_classes_may_be_chosen_of_a_file(name, options):
    model, other = small(name, 5, **options), small(name, 2, **options)
    with pytest.warns(WeightsNote, match="head takes 2 of the file's 5 outputs"):
        convattn.load_official(other, convattn.to_official(model), head_rows=[4, 1])
    for layer in model.classifier_names:
        wanted, got = (each.get_submodule(layer).weight for each in (model, other))
        assert torch.equal(wanted[[4, 1]], got)
