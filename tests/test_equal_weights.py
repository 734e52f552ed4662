"""Whatever was done to a model: through file, state dict, copy and pickle it computes the same, or says why not."""

import copy
import json
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import convattn
from convattn.mixers.registry import list_mixers
from convattn.model_files import load_model, read_metadata, save_model
from convattn.model_files.facts import differences, facts_of
from convattn.model_files.rebuild import find_recipe
from convattn.surgery import replay
from convattn.training.config import LoopConfig
from convattn.training.processes import Processes
from convattn.walk import hung_on
from convattn.weights.read import CheckpointError
from tiny_runs import TINY_OPTIONS
from toys import TOYS, lively, randomise_norms, toy, toy_images

SWIN = dict(num_classes=5, img_size=32, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2))


def our(name, **options):
    return lambda: convattn.create_model(name, **{**toy(name).options, "num_classes": 4, **options})


def timms(name="test_resnet", **options):
    return lambda: convattn.create_model(f"timm:{name}", **{"num_classes": 4, **options})


def draw(model):
    """Weights and statistics at random, those of fresh blocks too."""
    lively(model)
    randomise_norms(model)
    return model.eval()


def outputs(model, images):
    with torch.no_grad():
        out = model(images)
    return out if isinstance(out, list) else [out]


def assert_same(model, other, images):
    for want, got in zip(outputs(model, images), outputs(other, images), strict=True):
        assert torch.equal(want, got)


def assert_survives(fresh, images, tmp_path):
    """`fresh` builds the model and does to it what is to be done; other random weights each time."""
    model = draw(fresh())
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    recipe, _, differences = find_recipe(loaded)  # a copy from a file is as good as what it was made from
    described = read_metadata(tmp_path / "m.safetensors")
    assert described == described | json.loads(json.dumps(recipe)) and differences == []
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(model, other, images)
    again = draw(fresh())
    again.load_state_dict(model.state_dict())
    assert_same(model, again, images)


def changed(build, *changes):
    def fresh():
        model = build()
        for change in changes:
            returned = change(model)
            model = returned if isinstance(returned, nn.Module) else model
        return model

    return fresh


def pool(name, classes=5):
    return lambda model: model.reset_classifier(classes, name)


def put(place, name, value):
    return lambda model: setattr(model.get_submodule(place), name, value)


def attach(mixer, **options):
    return lambda model: convattn.attach(model, mixer, **options)


# What each family's toy goes through: file -> model and changes.
FAMILIES = {
    "cotnet": ("cotnet_nano", {}, [pool("max"), attach("cbam")]),
    "das": ("resnet18_das_cifar", {}, [attach("se", init="paper"), pool("max")]),
    "das_mobilenet": ("mobilenetv2_das", {}, [pool("catavgmax"), put("bn1", "eps", 0.1)]),
    "groupmixformer": ("groupmixformer_nano", {"in_chans": 2}, [pool("max")]),
    "hybrid": ("hybrid", {}, [pool("avgmax"), attach("das", alpha=0.5, kernel_size=1)]),
    "next_vit": ("nextvit_nano", {"token_pool": "2d"}, [pool("max")]),
    "se_cotnetd_152": ("se_cotnetd_152", {}, [lambda model: model.set_grad_checkpointing(), pool("avg", 0)]),
    "smt": ("smt_nano", {"drop_path_rate": 0.5, "global_pool": "max"}, [put("head.drop", "p", 0.9), pool("avg", 4)]),
}


@pytest.mark.parametrize("family", TOYS)
def test_every_family_survives(family, tmp_path):
    name, options, changes = FAMILIES[family]
    images = toy_images(name, in_chans=options.get("in_chans", 3))
    assert_survives(changed(our(name, **options), *changes), images, tmp_path)


CHANGES = {
    "surgery": changed(
        timms(num_classes=0),
        attach("das", where=["layer1.0", "layer3.0"], alpha=0.5, kernel_size=1),
        lambda model: convattn.replace(model, "group_aggregator", kernels=(3, 3, 5)),
        attach("se", where=["layer2.0"], init="paper"),
        put("layer2.0.attached.mixer", "add_maxpool", True),
        put("layer1.0.bn2", "momentum", 0.3),
        put("maxpool", "stride", 1),
        put("", "class_to_idx", {"cat": 0}),
        pool("catavgmax"),
    ),
    "transformer": changed(timms("test_vit", qk_norm=True), lambda model: model.set_input_size((64, 64)), pool("max")),
    "levels": changed(
        lambda: convattn.create_model("timm:test_resnet", features_only=True, out_indices=(1, 3), output_stride=8),
        attach("eca"),
    ),
    "levels of ours": changed(
        lambda: convattn.create_model("smt_nano", features_only=True, out_indices=(0, 2), **TINY_OPTIONS)
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_done_to_a_model_survives(what, tmp_path):
    assert_survives(CHANGES[what], torch.randn(2, 3, 64, 64), tmp_path)


CHAIN = dict(layers=(len(list_mixers()), 1, 1, 1), channels=(40, 8, 8, 8))  # blocks of 160: it suits every mixer


@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_every_mixer_survives(turn, tmp_path):
    """By turns as the identity, as its paper starts, and in the place of a convolution."""

    def fresh():
        rows = []
        for index, mixer in enumerate(list_mixers()):
            place, how = f"layer1.{index}", (index + turn) % 3
            row = dict(mixer=mixer, options={}, channels=160, layout="NCHW", kind="attach", place=place)
            in_place_of = dict(kind="replace", place=f"{place}.conv3")
            rows.append(row | (dict(init=("identity", "paper")[how]) if how < 2 else in_place_of))
        return replay(timms("resnet26", **CHAIN)(), rows)

    assert_survives(fresh, torch.randn(1, 3, 56, 56), tmp_path)


def hook(model):
    model.layer2.register_forward_hook(lambda module, inputs, output: 2 * output)


def pre_hook(model):
    model.layer2.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def patched(model):
    forward = model.layer2.forward
    model.layer2.forward = lambda x: 2 * forward(x)


def activation(model):
    model.layer1[0].act1 = nn.GELU()


def head_by_hand(model):
    model.fc = nn.Linear(model.fc.in_features, 9)


def unseen_layer(model):
    model.helpers = [nn.Linear(2, 2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hook, r"layer2.forward_hook 0 is the function hook.*, and not there in a model built anew"),
        (pre_hook, r"layer2.forward_pre_hook 0 is the function pre_hook.*, and not there"),
        (patched, r"layer2.forward is the function patched.*, and not there"),
        (activation, r"layer1.0.act1 is a GELU, and a ReLU in a model built anew"),
        (head_by_hand, r"fc.weight is a parameter of shape \(9, 96\), and a parameter of shape \(4, 96\)"),
        (unseen_layer, r"helpers is a function or collection of its own, and not there"),
        (lambda model: setattr(model.fc, "bias", None), r"fc.bias is None, and a parameter of shape \(4,\)"),
        (lambda model: weight_norm(model.fc) and None, r"fc is a ParametrizedLinear, and a Linear in a model"),
        (lambda model: model.prune_intermediate_layers([0, 1]), r"layer2.0 is not there, and a BasicBlock in a model"),
        (lambda model: setattr(model, "t", torch.ones(1)), r"t is a tensor of shape \(1,\), and not there"),
        (
            lambda model: model.register_buffer("t", torch.ones(1), False),
            r"t is a buffer that no state dict holds, and",
        ),
    ],
)
def test_what_no_file_brings_back_is_refused_by_name(change, message, tmp_path):
    model = changed(timms(), change)()
    with pytest.raises(CheckpointError, match=rf"timm:test_resnet is not saved.*{message}") as error:
        save_model(model, tmp_path / "m.safetensors")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_tensors_under_several_names_stay_one(tmp_path):
    model = draw(our("smt_nano", depths=(1, 1, 2, 1))())
    first, second = model.stages[2].blocks
    second.channel_mixer = first.channel_mixer  # a shared layer
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert_same(model, loaded, toy_images("smt_nano"))
    first, second = loaded.stages[2].blocks
    assert all(map(lambda a, b: a is b, first.channel_mixer.parameters(), second.channel_mixer.parameters()))


def test_tensors_that_were_one_and_are_several_are_told():
    def pair():
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    tied = pair()
    tied[1].weight = tied[0].weight
    (found,) = differences(facts_of(pair()), facts_of(tied))
    assert str(found) == "0.weight and 1.weight is several tensors, and one tensor in a model built anew"
    assert not found.is_kept and differences(facts_of(tied), facts_of(pair())) == []


def test_a_model_that_ties_weights_itself_keeps_them_tied(tmp_path):
    model = draw(timms("test_resnet")())
    views = torch.randn(4, 96)
    model.fc.weight = nn.Parameter(views)
    model.fc.bias = nn.Parameter(views[:, 0])  # of the same memory
    save_model(model, tmp_path / "m.safetensors")
    assert_same(model, load_model(tmp_path / "m.safetensors"), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_keep_their_type(dtype, tmp_path):
    model = draw(timms("swin_tiny_patch4_window7_224", **SWIN)()).to(dtype)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert_same(model, loaded, torch.randn(1, 3, 32, 32, dtype=dtype))


def test_weights_of_several_types_keep_theirs(tmp_path):
    model = draw(our("smt_nano")())
    model.head.double()
    save_model(model, tmp_path / "m.safetensors")
    state = load_model(tmp_path / "m.safetensors").state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }


def test_buffers_that_no_state_dict_holds_are_kept_where_they_differ(tmp_path):
    model = draw(timms("eva02_tiny_patch14_224", depth=1, embed_dim=24, num_heads=2, img_size=56)())
    model.rope.pos_embed.mul_(1.5)
    save_model(model, tmp_path / "m.safetensors")
    assert read_metadata(tmp_path / "m.safetensors")["surgery"] == [{"kind": "buffers", "names": ["rope.pos_embed"]}]
    assert_same(model, load_model(tmp_path / "m.safetensors"), torch.randn(1, 3, 56, 56))


def test_what_wraps_a_model_is_left_aside(tmp_path):
    model = draw(timms()())
    for wrapped in (torch.compile(model, backend="eager"), torch.optim.swa_utils.AveragedModel(model)):
        save_model(wrapped, tmp_path / "m.safetensors")
        assert_same(model, load_model(tmp_path / "m.safetensors"), torch.randn(1, 3, 32, 32))


class Scaled(nn.Module):
    """Somebody's wrapper: it computes, and calls what it holds as torch's wrappers do."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x) / 3


def heard(model):
    parallel = nn.DataParallel(model)
    parallel.register_forward_hook(lambda module, inputs, output: 2 * output)
    return parallel


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (Scaled, r"Scaled computes something of its own, .*; save the model in it, its \.module"),
        (heard, r"DataParallel has a forward hook, .*; save the model in it, its \.module"),
        (lambda model: nn.Sequential(OrderedDict(module=model, act=nn.Softmax(1))), "Sequential computes something"),
    ],
)
def test_what_computes_around_a_model_is_not_left_aside_in_silence(wrap, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        save_model(wrap(timms()()), tmp_path / "m.safetensors")


def test_a_forward_put_in_place_of_the_classs_is_seen_whatever_lies_beside_it(tmp_path):
    model = draw(timms()())
    model._original_forward = model.forward
    model.forward = lambda x: 2 * model._original_forward(x)
    with pytest.raises(CheckpointError, match="forward is a function"):
        save_model(model, tmp_path / "m.safetensors")
    model.forward = model.__dict__.pop("_original_forward")  # and put back
    assert hung_on(model) is None
    save_model(model, tmp_path / "m.safetensors")
    assert_same(model, load_model(tmp_path / "m.safetensors"), torch.randn(1, 3, 32, 32))


def test_hooks_on_the_state_dict_change_nothing_in_a_file(tmp_path):
    model = draw(timms()())
    save_model(model, tmp_path / "before.safetensors")
    model.register_state_dict_post_hook(lambda module, state, prefix, meta: state.update(dict.fromkeys(state, 0)))
    save_model(model, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "before.safetensors").read_bytes()


def test_a_model_in_the_hands_of_accelerate_is_saved_without_them(tmp_path):
    model = draw(timms()())
    save_model(model, tmp_path / "before.safetensors")
    accelerator = Processes(LoopConfig(device="cpu", precision="bf16")).accelerator
    save_model(accelerator.unwrap_model(accelerator.prepare_model(model)), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "before.safetensors").read_bytes()


def test_synchronised_norms_are_saved_as_the_norms_they_stand_for(tmp_path):
    model = draw(timms()())
    save_model(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), tmp_path / "m.safetensors")
    assert_same(model, load_model(tmp_path / "m.safetensors"), torch.randn(1, 3, 32, 32))


def test_saving_draws_no_random_numbers(tmp_path):
    model = our("smt_nano")()
    torch.manual_seed(3)
    save_model(model, tmp_path / "m.safetensors")
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_values_that_no_file_holds_are_named(tmp_path):
    model = our("smt_nano")()
    with pytest.raises(CheckpointError, match=r"stem\.\S+ is a tensor without memory; a model file holds whole"):
        save_model(copy.deepcopy(model).to("meta"), tmp_path / "m.safetensors")


def test_options_are_kept_as_json_gives_them_back(tmp_path):
    options = toy("hybrid").options | {"mixers": ("das", "cot", "group_aggregator", "e_mhsa"), "num_classes": 4}
    options["mixer_options"] = {"e_mhsa": {"head_dim": 8}, "group_aggregator": {"kernels": (3, 3, 5)}}
    assert json.loads(json.dumps(options)) != options
    assert_survives(lambda: convattn.create_model("hybrid", **options), toy_images("hybrid"), tmp_path)
