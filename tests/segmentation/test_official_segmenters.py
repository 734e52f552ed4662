"""Whole segmenters under mmsegmentation's names, both ways, and what a file of another kind is told."""

import warnings

import pytest
import torch

import convattn
from convattn.weights.errors import CheckpointError, WeightsNote
from convattn.weights.official import name_map
from segmentation_toys import build_segmenter
from toys import build_toy, toy

FAMILIES = ["smt_tiny", "nextvit_small", "groupmixformer_tiny", "cotnet_50"]


def load(model, state):
    """Load and return what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convattn.load_official(model, state)
    return [str(warning.message) for warning in caught if issubclass(warning.category, WeightsNote)]


def assert_same_weights(model, other):
    state = other.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("head", ["upernet", "semantic_fpn"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_segmenter_goes_out_and_in(name, head, tmp_path):
    source, target = build_segmenter(name, head), build_segmenter(name, head)
    torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": convattn.to_official(source)}, tmp_path / "iter_160000.pth")
    load(target, tmp_path / "iter_160000.pth")
    assert_same_weights(target, source)
    names = name_map(source)
    ours = [*source.state_dict()]
    assert [names.to_ours(names.to_theirs(each)) for each in ours] == ours


def test_names_are_the_references():
    names = convattn.to_official(build_segmenter("smt_tiny", "semantic_fpn")).keys()
    assert {
        "backbone.patch_embed1.conv.0.weight",
        "backbone.norm4.bias",
        "neck.lateral_convs.0.conv.bias",
        "neck.fpn_convs.3.conv.weight",
        "decode_head.scale_heads.3.4.bn.running_var",
    } <= names
    assert {name.partition(".")[0] for name in names} == {"backbone", "neck", "decode_head"}
    names = convattn.to_official(build_segmenter("smt_tiny")).keys()
    assert {"decode_head.psp_modules.3.1.conv.weight", "auxiliary_head.convs.0.bn.num_batches_tracked"} <= names


def test_spellings_of_other_versions_are_known():
    source, target = build_segmenter(), build_segmenter()
    state = {
        name.replace("auxiliary_head.", "auxiliary_head.0.").replace(".local_conv.", ".dw_conv."): tensor
        for name, tensor in convattn.to_official(source).items()
    }
    assert any(".attn.dw_conv." in name for name in state)
    assert load(target, state) == []
    assert_same_weights(target, source)


def test_a_wrapper_of_levels_is_no_part_of_the_names():
    wrapper = convattn.create_model("smt_tiny", features_only=True, **toy("smt_tiny").options)
    target = convattn.create_segmenter(wrapper, num_classes=7, width=8)
    source = build_segmenter()
    load(target, convattn.to_official(source))
    assert convattn.to_official(target).keys() == convattn.to_official(source).keys()
    assert torch.equal(target.backbone.model.stem.conv1.weight, source.backbone.stem.conv1.weight)


def test_entries_that_the_authors_code_never_reads_are_left_and_told():
    source, target = build_segmenter("nextvit_small"), build_segmenter("nextvit_small")
    state = convattn.to_official(source)
    assert "backbone.extra_norm_list.3.weight" in state
    state |= {"backbone.proj_head.0.weight": torch.randn(1000, 32), "backbone.proj_head.0.bias": torch.randn(1000)}
    (note,) = load(target, state)
    assert "the authors' code never reads it: backbone.extra_norm_list.3.weight" in note
    assert "the model ends before backbone.head.fc.weight, backbone.head.fc.bias, left aside" in note
    assert_same_weights(target, source)


@pytest.mark.parametrize("entry", ["backbone.proj_head.1.weight", "backbone.stages.9.x", "decode_head.x.weight", "x"])
def test_any_other_entry_is_refused(entry):
    model = build_segmenter("nextvit_small")
    state = {**convattn.to_official(model), entry: torch.randn(3)}
    with pytest.raises(CheckpointError, match=r"upernet_convattn_nextvit_small .* is in the file, not here"):
        convattn.load_official(model, state)


def test_ones_own_names_go_in_as_they_are():
    source, target = build_segmenter(), build_segmenter()
    assert load(target, {"state_dict": source.state_dict()}) == []
    assert_same_weights(target, source)


# Files of another kind: one line


def refused(model, state):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        convattn.load_official(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_with_another_head_is_told():
    message = refused(build_segmenter(head="semantic_fpn"), convattn.to_official(build_segmenter()))
    assert message == (
        "state dict: does not fit semantic_fpn_smt_tiny (7 classes): nothing of neck is in the file, which has "
        "auxiliary_head.conv_seg, auxiliary_head.convs, decode_head.bottleneck, decode_head.fpn_bottleneck, "
        "decode_head.fpn_convs, decode_head.lateral_convs and 1 more; load what fits with strict=False"
    )


def test_a_file_of_other_classes_is_told():
    message = refused(build_segmenter(), convattn.to_official(build_segmenter(num_classes=5)))
    assert (
        "does not fit upernet_smt_tiny (7 classes): the file has 5 classes; build the model with num_classes=5"
        in message
    )


def test_a_file_with_another_backbone_is_told():
    message = refused(build_segmenter(), convattn.to_official(build_segmenter("cotnet_50")))
    assert "nothing of backbone is in the file, which has backbone.bn1, backbone.conv1, backbone.layer1" in message


@pytest.mark.parametrize("num_classes", [0, 11])
def test_a_classifiers_file_is_told_where_it_belongs(num_classes):
    state = convattn.to_official(build_toy("smt_tiny", num_classes=num_classes))
    model = build_segmenter()
    assert refused(model, state) == (
        "state dict: not a checkpoint of upernet_smt_tiny (7 classes), but of its backbone alone; load it there: "
        "load_official(model.backbone, …)"
    )
    said = load(model.backbone, state)
    assert torch.equal(model.backbone.stem.conv1.weight, state["patch_embed1.conv.0.weight"])
    assert len(said) == bool(num_classes)


def test_a_file_of_something_else_is_told():
    message = refused(build_segmenter(), {"conv.weight": torch.randn(3, 3)})
    assert message == "state dict: not a checkpoint of upernet_smt_tiny (7 classes): its entries are conv.weight, …"


def test_what_fits_can_be_loaded():
    source, target = build_segmenter(num_classes=5), build_segmenter()
    with pytest.warns(WeightsNote, match=r"left out .* decode_head.conv_seg.weight is \(5, 8, 1, 1\) in the file"):
        convattn.load_official(target, convattn.to_official(source), strict=False)
    assert torch.equal(target.decode_head.bottleneck.conv.weight, source.decode_head.bottleneck.conv.weight)


def test_rows_of_the_files_classes_are_chosen_in_both_heads():
    source, target = build_segmenter(num_classes=7), build_segmenter(num_classes=3)
    with pytest.warns(WeightsNote, match="head takes 3 of the file's 7 outputs"):
        convattn.load_official(target, convattn.to_official(source), head_rows=[0, 6, 2])
    for mine, theirs in ((target.decode_head, source.decode_head), (target.auxiliary_head, source.auxiliary_head)):
        assert torch.equal(mine.conv_seg.weight, theirs.conv_seg.weight[[0, 6, 2]])
        assert torch.equal(mine.conv_seg.bias, theirs.conv_seg.bias[[0, 6, 2]])


def test_what_has_no_counterpart_is_not_written():
    with pytest.raises(CheckpointError, match=r"backbone.conv1.0.weight of .* has no counterpart in"):
        convattn.to_official(build_segmenter("timm:test_resnet"))


# Weights of the backbone alone


@pytest.mark.parametrize("name", FAMILIES)
def test_a_segmenter_starts_from_a_classifiers_file(name, tmp_path):
    source = build_toy(name, num_classes=11)
    torch.save({"model": convattn.to_official(source)}, tmp_path / "classifier.pth")
    with pytest.warns(WeightsNote) as caught:
        model = build_segmenter(name, pretrained_path=tmp_path / "classifier.pth")
    note = str(caught[0].message)
    assert "left aside" in note
    if name == "nextvit_small":
        assert "stages.0.norm, stages.1.norm, stages.2.norm fresh: the file is of the form without them" in note
    mine, theirs = model.backbone.state_dict(), source.state_dict()
    shared = mine.keys() & theirs.keys()
    assert len(shared) > 0.9 * len(theirs)
    assert all(mine[name].equal(theirs[name]) for name in shared if theirs[name].ndim > 1)


def test_one_extra_norm_that_a_file_lacks_is_not_passed_over(tmp_path):
    state = convattn.to_official(build_toy("nextvit_small", extra_norm=True))
    state = {name: tensor for name, tensor in state.items() if not name.startswith("extra_norm_list.1.")}
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match=r"stages.1.norm.weight \(32,\) is missing in the file"):
        build_segmenter("nextvit_small", pretrained_path=tmp_path / "backbone.pth")


def test_a_segmenters_file_starts_the_backbone_of_another(tmp_path):
    source = build_segmenter("smt_tiny", "upernet")
    torch.save({"state_dict": convattn.to_official(source)}, tmp_path / "upernet.pth")
    with pytest.warns(WeightsNote, match=r"backbone taken, left what is beside it: decode_head \(\d+\), aux"):
        model = convattn.create_segmenter(
            "smt_tiny", "semantic_fpn", 3, width=8, pretrained_path=tmp_path / "upernet.pth", **toy("smt_tiny").options
        )
    state = source.backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.backbone.state_dict().items())
