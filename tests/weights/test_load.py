"""What is mapped, missing, left over or fresh is said, once, through every door; what does not belong is refused."""

import copy
import warnings

import pytest
import safetensors.torch
import timm
import torch
from official_files import TOY, official_toy

import convattn
from convattn.model_files import save_model
from convattn.weights.errors import CheckpointError, WeightsNote
from convattn.weights.head_rows import are_imagenet_in_order, imagenet_22k_rows
from convattn.weights.load import load_pretrained
from toys import build_toy, toy

FAMILIES = ["smt_tiny", "groupmixformer_tiny", "nextvit_small", "cotnet_50", "se_cotnetd_152", "resnet18_das"]
FAMILIES += ["mobilenetv2_das", "hybrid"]


def create(name, **options):
    return convattn.create_model(name, **{**toy(name).options, **options})


def assert_same_weights(model, other, but="nothing"):
    state = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert name.startswith(but) or torch.equal(tensor, state[name]), name


# A file of a model's own weights


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_starts_from_its_own_file(name, tmp_path):
    source = build_toy(name, num_classes=5)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    safetensors.torch.save_model(source, tmp_path / "own.safetensors")
    save_model(create(name, num_classes=5), tmp_path / "described.safetensors")
    layer = source.pretrained_cfg["classifier"] + "."
    for file in ("own.pth", "own.safetensors"):
        assert_same_weights(create(name, num_classes=5, pretrained_path=tmp_path / file), source)
    overlay = dict(file=str(tmp_path / "own.pth"))
    timm_name = source.pretrained_cfg["architecture"]
    again = timm.create_model(
        timm_name, pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay, **toy(name).options
    )
    assert_same_weights(again, source)
    with pytest.warns(
        WeightsNote, match=r"own.safetensors: head fresh: the file has 5 classes, the model 3$"
    ) as caught:
        other = create(name, num_classes=3, pretrained_path=tmp_path / "own.safetensors")
    assert len(caught) == 1
    assert_same_weights(other, source, but=layer)
    with pytest.warns(WeightsNote, match=r"described.safetensors: the model ends before .*, left aside$"):
        create(name, num_classes=0, pretrained_path=tmp_path / "described.safetensors")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_without_batch_counters_lacks_nothing(name):
    source = build_toy(name)
    state = {key: tensor for key, tensor in source.state_dict().items() if "num_batches" not in key}
    assert len(state) < len(source.state_dict())
    model = build_toy(name)
    convattn.load_official(model, state)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())


# Heads


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_is_left_aside_or_fresh_and_that_is_said(name):
    source = build_toy(name, num_classes=4)
    layer, state = source.pretrained_cfg["classifier"] + ".", source.state_dict()
    for options in (dict(features_only=True), dict(num_classes=0)):
        model = create(name, **options)
        with pytest.warns(WeightsNote, match=r"^state dict: the model ends before .*, left aside$") as caught:
            assert convattn.load_official(model, state) is model
        assert len(caught) == 1
    headless = {key: tensor for key, tensor in state.items() if not key.startswith(layer)}
    with pytest.raises(CheckpointError, match=rf"{layer}weight \(4, \d+\) is missing in the file; .* strict=False"):
        convattn.load_official(create(name, num_classes=4), headless)
    with pytest.warns(WeightsNote, match=rf"left out of .* \(4 classes\): {layer}weight .*is missing in the file"):
        convattn.load_official(create(name, num_classes=4), headless, strict=False)


def test_a_file_without_a_head_leaves_a_fresh_one_with_a_word(tmp_path):
    source, state = official_toy(num_classes=0)
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.warns(WeightsNote, match=r"backbone.pth: head fresh: the file has none$") as caught:
        model = create(TOY, num_classes=3, pretrained_path=tmp_path / "backbone.pth")
    assert len(caught) == 1
    assert_same_weights(model.stages, source.stages)


def test_half_a_head_is_none(tmp_path):
    _, state = official_toy(num_classes=3)
    del state["head.bias"]
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(
        CheckpointError, match=r"half.pth: does not fit SMT \(3 classes\): head.fc.bias \(3,\) is missing"
    ):
        create(TOY, num_classes=3, pretrained_path=tmp_path / "half.pth")


SYNSETS = timm.data.ImageNetInfo("imagenet-1k").label_names()


@pytest.mark.parametrize("levels", [(0, 1, 2, 3), (0, 1)])
@pytest.mark.parametrize("name", ["cotnet_50", "mobilenetv2_das", "hybrid"])
def test_only_what_follows_the_last_level_is_left_aside(name, levels):
    source, pyramid = create(name), create(name, features_only=True, out_indices=levels)
    state = source.state_dict()
    with pytest.warns(WeightsNote, match="the model ends before"):
        convattn.load_official(pyramid, state)
    first = next(key for key in state if ".0." in key and key.endswith("weight") and key.startswith(("la", "st", "bl")))
    block = first.partition(".0.")[2]
    stage = {"cotnet_50": "layer1.", "mobilenetv2_das": "blocks.0.", "hybrid": "stages.0.blocks."}[name]
    deeper = {**state, f"{stage}9.{block}": state[first]}  # a block more, in a stage that is there
    with pytest.raises(CheckpointError, match=f"{stage}9.* is in the file, not here"):
        convattn.load_official(pyramid, deeper)


def test_a_pyramid_of_timm_takes_no_file_of_a_deeper_model(tmp_path):
    torch.save(timm.create_model("resnet26t").state_dict(), tmp_path / "deeper.pth")
    with pytest.raises(CheckpointError, match=r"deeper\.pth: does not fit"):
        convattn.create_model(
            "timm:resnet26t", features_only=True, layers=(1, 2, 2, 2), pretrained_path=tmp_path / "deeper.pth"
        )


@pytest.fixture(scope="module")
def of_22k(tmp_path_factory):
    source, state = official_toy(num_classes=21841)
    path = tmp_path_factory.mktemp("22k") / "22k.pth"
    torch.save({"model": state}, path)
    return source, path


def test_a_22k_head_is_mapped_where_it_is_asked_for(of_22k):
    source, path = of_22k
    with pytest.warns(WeightsNote, match=r"22k.pth: head takes 1,000 of the file's 21,841 outputs$"):
        model = convattn.load_official(build_toy(TOY, num_classes=1000), path, head_rows="imagenet-22k")
    assert torch.equal(model.head.fc.weight, source.head.fc.weight[imagenet_22k_rows()])
    assert torch.equal(model.head.fc.bias, source.head.fc.bias[imagenet_22k_rows()])
    assert_same_weights(model.stages, source.stages)
    assert_same_weights(convattn.load_official(build_toy(TOY, num_classes=21841), path), source)


@pytest.mark.parametrize(
    "classes", [SYNSETS, SYNSETS[::-1], SYNSETS[700:1000:7]], ids=["all", "in another order", "some"]
)
def test_a_22k_head_is_mapped_where_the_classes_are_imagenets(of_22k, classes):
    source, path = of_22k
    with pytest.warns(WeightsNote, match=r"of the file's 21,841 outputs, by the synsets of the classes$"):
        model = create(TOY, num_classes=len(classes), pretrained_path=path, classes=classes)
    rows = [imagenet_22k_rows()[SYNSETS.index(synset)] for synset in classes]
    assert torch.equal(model.head.fc.weight, source.head.fc.weight[rows])
    model.reset_classifier(len(classes))
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": tuple(classes)}
    with pytest.warns(WeightsNote, match=r"by the synsets of the classes$"):
        convattn.load_official(model, path)
    assert torch.equal(model.head.fc.weight, source.head.fc.weight[rows])


@pytest.mark.parametrize("classes", [(), [f"species {n}" for n in range(1000)], [*SYNSETS[:-1], "n00000001"]])
def test_a_22k_head_is_not_mapped_onto_other_classes(of_22k, classes):
    source, path = of_22k
    with pytest.warns(WeightsNote, match=r"head fresh: the file has 21,841 classes, the model 1,000; head_rows='imag"):
        model = create(TOY, num_classes=1000, pretrained_path=path, classes=classes)
    assert not (model.head.fc.weight == source.head.fc.weight[imagenet_22k_rows()]).any()
    assert_same_weights(model.stages, source.stages)
    with pytest.raises(CheckpointError, match=r"head.fc.weight is \(21841, 24\) in the file, \(1000, 24\) here"):
        convattn.load_official(build_toy(TOY, num_classes=1000), path)


@pytest.mark.parametrize("rows", [[], range(4), [0.5] * 5, "imagenet-22k"])
def test_rows_are_one_a_class(rows, tmp_path):
    torch.save(build_toy("smt_tiny", num_classes=5).state_dict(), tmp_path / "own.pth")
    with pytest.raises(
        CheckpointError, match=r"head_rows (has [\d,]+ rows for 5 classes|\[0\.5, .* must be the numbers)"
    ):
        create("smt_tiny", num_classes=5, pretrained_path=tmp_path / "own.pth", head_rows=rows)


def test_imagenets_classes_in_another_order_are_told():
    assert are_imagenet_in_order(SYNSETS)
    assert not are_imagenet_in_order([*SYNSETS[1:], SYNSETS[0]])


def test_rows_that_the_file_has_not_are_refused(tmp_path):
    source, state = official_toy(num_classes=3)
    with pytest.raises(CheckpointError, match=r"state dict: row 5 must be between 0 and 2: head.fc.weight has 3"):
        convattn.load_official(build_toy(TOY, num_classes=2), state, head_rows=[0, 5])
    torch.save(state, tmp_path / "own.pth")
    with pytest.warns(WeightsNote, match="head fresh: the file's is of other classes"):
        model = create(TOY, num_classes=3, head_rows="fresh", pretrained_path=tmp_path / "own.pth")
    assert not (model.head.fc.weight == source.head.fc.weight).any()


# What does not belong


def quantised(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, which gives them up
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def test_a_misfit_names_the_file_the_entry_and_both_shapes(tmp_path):
    _, state = official_toy(num_classes=3)
    for name, tensor, message in [
        ("norm4.weight", torch.ones(25), r"stages.3.norm.weight is \(25,\) in the file, \(24,\) here"),
        ("head.weight", torch.ones(3, 25), r"head.fc.weight is \(3, 25\) in the file, \(3, 24\) here"),
        ("patch_embed1.conv.0.weight", torch.ones(8, 3, 3, 3), r"stem.conv1.weight is \(8, 3, 3, 3\) in the file"),
        ("norm4.weight", torch.ones(24, dtype=torch.int8), r"stages.3.norm.weight is int8 in the file, float32 here"),
        ("norm4.weight", torch.ones(24, dtype=torch.cfloat), r"norm.weight is complex64 in the file, float32 here"),
        ("norm4.weight", torch.ones(24).to_sparse(), r"norm.weight is sparse_coo in the file, float32 here"),
        ("norm4.weight", torch.ones(24, device="meta"), r"norm.weight is without numbers in the file"),
        ("norm4.weight", quantised(torch.ones(24)), r"norm.weight is qint8 in the file, float32 here"),
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, at what it will drop
            torch.save({**state, name: tensor}, tmp_path / "other.pth")
            with pytest.raises(CheckpointError, match=message) as error:
                create(TOY, num_classes=3, pretrained_path=tmp_path / "other.pth")
        assert str(error.value).startswith(f"{tmp_path / 'other.pth'}: does not fit SMT (3 classes): ")
        assert "\n" not in str(error.value)


def test_half_and_eight_bit_floats_are_numbers():
    source, state = official_toy()
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        small = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
        model = convattn.load_official(build_toy(TOY), small)
        assert torch.equal(model.head.fc.weight, source.head.fc.weight.to(dtype).float())


def test_image_channels_that_no_rule_leads_to_are_refused():
    _, state = official_toy(in_chans=1)
    for channels in (3, 5):
        with pytest.raises(
            CheckpointError, match=rf"stem.conv1.weight is \(8, 1, 7, 7\) in the file, \(8, {channels}, 7"
        ):
            load_pretrained(
                build_toy(TOY, in_chans=channels), state, "a.pth", first_conv="stem.conv1", classifier="head.fc"
            )
    four = build_toy(TOY, in_chans=4).state_dict()
    with pytest.raises(CheckpointError, match=r"stem.conv1.weight is \(8, 4, 7, 7\) in the file, \(8, 1, 7, 7\) here"):
        load_pretrained(build_toy(TOY, in_chans=1), four, "a.pth", first_conv="stem.conv1", classifier="head.fc")


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), torch.float32), (float("-inf"), torch.float16), (1e60, torch.float64)]
)
def test_numbers_that_are_not_finite_are_told(value, dtype, tmp_path):
    """1e60 is finite in the file alone."""
    source, state = official_toy()
    file, name = tmp_path / "diverged.pth", "stem.conv1.weight"
    state = source.state_dict()
    state[name] = state[name].to(dtype, copy=True)
    state[name][0, 0, 0, 0] = value
    torch.save(state, file)
    said = rf"diverged.pth: not all numbers of {name} are finite$"
    with pytest.warns(WeightsNote, match=said):
        model = convattn.load_official(build_toy(TOY), file)
    with pytest.warns(WeightsNote, match=said):
        create(TOY, num_classes=source.num_classes, pretrained_path=file)
    described = create(TOY, num_classes=source.num_classes)
    described.load_state_dict(model.state_dict())
    save_model(described, file.with_suffix(".safetensors"))
    with pytest.warns(WeightsNote, match=said.replace("pth", "safetensors")):
        convattn.open_model(file.with_suffix(".safetensors"))


# Wrapped models


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        torch.nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda m: torch.compile(torch.nn.DataParallel(m)),
    ],
    ids=["compiled", "parallel", "averaged", "both"],
)
def test_wrapped_models_are_looked_into(wrap):
    source, state = official_toy()
    inner = build_toy(TOY)
    model = wrap(inner)
    assert convattn.load_official(model, state) is model
    assert_same_weights(
        getattr(model, "module", inner) if wrap is torch.optim.swa_utils.AveragedModel else inner, source
    )
    assert convattn.to_official(model).keys() == state.keys()


# Models of timm


@pytest.fixture(scope="module")
def of_timm():
    return timm.create_model("resnet10t", num_classes=5)


def test_a_model_of_timm_says_what_it_takes(of_timm, tmp_path):
    path = tmp_path / "own.pth"
    torch.save({"state_dict": {f"module.{k}": t for k, t in of_timm.state_dict().items()}}, path)
    assert_same_weights(convattn.create_model("timm:resnet10t", num_classes=5, pretrained_path=path), of_timm)
    with pytest.warns(WeightsNote, match=r"own.pth: head fresh: the file has 5 classes, the model 3$") as caught:
        other = convattn.create_model("timm:resnet10t", num_classes=3, pretrained_path=path)
    assert len(caught) == 1
    assert_same_weights(other, of_timm, but="fc.")
    with pytest.warns(WeightsNote, match=r"own.pth: conv1.0 adapted from 3 to 1 image channels$"):
        convattn.create_model("timm:resnet10t", num_classes=5, in_chans=1, pretrained_path=path)
    with pytest.warns(WeightsNote, match=r"own.pth: the model ends before fc.weight, fc.bias, left aside$"):
        features = convattn.create_model("timm:resnet10t", features_only=True, pretrained_path=path)
    assert torch.equal(features["conv1"][0].weight, of_timm.conv1[0].weight)


def test_a_file_that_does_not_fit_a_model_of_timm_is_one_line(of_timm, tmp_path):
    state = copy.copy(of_timm.state_dict())
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(CheckpointError, match=r"lacking.pth: .*layer1.0.conv1.weight") as error:
        convattn.create_model("timm:resnet10t", num_classes=5, pretrained_path=tmp_path / "lacking.pth")
    assert "\n" not in str(error.value)


def test_tables_that_timm_resizes_are_said(tmp_path):
    options = dict(embed_dim=8, depth=1, num_heads=2, num_classes=2)
    source = timm.create_model("vit_tiny_patch16_224", **options)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    said = r"loaded by timm's rules for vit_tiny_patch16_224; resized pos_embed \(1, 197, 8\) to \(1, 17, 8\)$"
    with pytest.warns(WeightsNote, match=said):
        model = convattn.create_model(
            "timm:vit_tiny_patch16_224", img_size=64, pretrained_path=tmp_path / "vit.pth", **options
        )
    assert torch.equal(model.head.weight, source.head.weight)
