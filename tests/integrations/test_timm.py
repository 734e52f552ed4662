"""timm's own contract over our families, and what other libraries do through it."""

import sys

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor

import convattn
from convattn.timm import main as run_script
from toys import build_toy, family_file, relative_error, shallow_toy, timm_name, toy

_NAMES = {family_file(name): name for name in reversed(convattn.list_models())}
_FAMILIES = sorted({*_NAMES.values(), "cotnext_50", "se_cotnetd_50"})
each_family = pytest.mark.parametrize("name", _FAMILIES)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64)


# One of each family, and those whose last map has another stride.
_STRIDES = ("smt_nano", "groupmixformer_nano", "nextvit_nano", "cotnet_nano", "resnet18_das_cifar", "mobilenetv2_das")


@pytest.mark.parametrize("name", [*_STRIDES, "resnet18_das", "se_cotnetd_50", "hybrid"])
def test_pool_size_is_that_of_the_map_in_front_of_the_head(name):
    with torch.device("meta"):
        model = convattn.create_model(name).eval()
        size = model.forward_features(torch.empty(1, *model.default_cfg["input_size"])).shape[2:]
    assert tuple(size) == model.default_cfg["pool_size"]


@pytest.mark.parametrize("name", convattn.list_models("*_*"))
def test_every_configuration_has_a_pool_size(name):
    cfg = timm.get_pretrained_cfg(timm_name(name))
    stride = 8 if name.endswith("_cifar") else 16 if "_nano" in name else 32
    assert cfg.pool_size == (cfg.input_size[1] // stride,) * 2


@pytest.mark.parametrize("name", [*_FAMILIES, "resnet18_das_cifar"])
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "fx"])
def test_every_class_of_features_gives_the_levels(name, kind):
    torch.manual_seed(0)
    want = timm.create_model(timm_name(name), features_only=True, out_indices=(1, 2, 3), **toy(name).options).eval()
    torch.manual_seed(0)
    got = timm.create_model(
        timm_name(name), features_only=True, out_indices=(1, 2, 3), feature_cls=kind, **toy(name).options
    ).eval()
    x = images()
    with torch.no_grad():
        levels = got(x)
        levels = list(levels.values()) if isinstance(levels, dict) else levels
        assert all(relative_error(level, wanted) < 1e-6 for level, wanted in zip(levels, want(x), strict=True))


@each_family
def test_torchvision_extracts_levels_with_timms_leaves(name):
    model, x = shallow_toy(name), images()
    node = model.feature_info[-2]["module"]
    leaves = dict(
        leaf_modules=list(timm.models.get_notrace_modules()),
        autowrap_functions=list(timm.models.get_notrace_functions()),
        param_shapes_constant=True,
    )
    body = create_feature_extractor(model, {node: "level"}, tracer_kwargs=leaves)
    with torch.no_grad():
        want = model.forward_intermediates(x, indices=[-2], intermediates_only=True)[0]
        assert relative_error(body(x)["level"], want) < 1e-6


@each_family
def test_what_is_saved_for_the_hub_comes_back(name, tmp_path):
    model = timm.create_model(timm_name(name), num_classes=3, **toy(name).options).eval()
    save_for_hf(model, tmp_path, model_args=toy(name).options, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


@each_family
@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traced_by_torch_jit(name):
    model = shallow_toy(name)
    with torch.no_grad():
        traced = torch.jit.trace(model, images(), check_trace=False)
        x = images(3)
        assert relative_error(traced(x), model(x)) < 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["smt_nano", "resnet18"])
def test_traced_at_the_size_of_photographs_and_with_gates(name):
    """Products large enough for oneDNN's own kernel, which no trace may hold."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    model = convattn.attach(model, "das").eval() if name == "resnet18" else model
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 3, 224, 224), check_trace=False)
        x = torch.randn(2, 3, 224, 224)
        assert relative_error(traced(x), model(x)) < 1e-5


_QUICKLY_EXPORTED = ("smt_base",)  # the contract exports all of them with a named batch beside free sizes


@pytest.mark.parametrize(
    "name",
    [n if n in _QUICKLY_EXPORTED else pytest.param(n, marks=pytest.mark.slow) for n in each_family.args[1]],
)
def test_exported_with_a_batch_that_is_named(name):
    model = build_toy(name)
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (images(),), dynamic_shapes=shapes).module()
    with torch.no_grad():
        for x in (images(1), images(5)):
            assert relative_error(exported(x), model(x)) < 1e-5


@each_family
def test_pruning_of_whole_rows_runs(name):
    model, x = build_toy(name), images()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        prune.ln_structured(layer, "weight", 0.25, n=2, dim=0)
    with torch.no_grad():
        want = model(x)
        for layer in layers:
            prune.remove(layer, "weight")
        assert relative_error(model(x), want) < 1e-5


@each_family
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_by_sample(name):
    model, x = shallow_toy(name).double(), images().double()
    parameters = {key: parameter.detach() for key, parameter in model.named_parameters()}

    def loss(parameters, image):
        tensors = {**parameters, **dict(model.named_buffers())}
        return torch.func.functional_call(model, tensors, (image[None],)).square().sum()

    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    model(x[1:]).square().sum().backward()
    key, parameter = next((k, p) for k, p in model.named_parameters() if p.ndim == 4)
    assert relative_error(got[key][1], parameter.grad) < 1e-9


@pytest.mark.parametrize(
    ("name", "plain", "options"),
    [
        ("resnet50_das", "resnet50", dict(gated_stages=())),
        ("mobilenetv2_das", "mobilenetv2_100", dict(gated_groups=())),
    ],
)
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride_dilates_as_timm_does(name, plain, options, stride):
    ours = convattn.create_model(name, output_stride=stride, num_classes=2, **options).eval()
    theirs = timm.create_model(plain, output_stride=stride, num_classes=2).eval()
    ours.load_state_dict(theirs.state_dict())
    assert ours.feature_info[-1]["reduction"] == stride
    x = images()
    with torch.no_grad():
        assert torch.equal(ours.forward_features(x), theirs.forward_features(x))
        gated = convattn.create_model(name, output_stride=stride, num_classes=0).eval()
        assert gated.forward_features(x).shape[2:] == (64 // stride,) * 2
    with pytest.raises(ValueError, match="output_stride 4 must be 8, 16 or 32"):
        convattn.create_model(name, output_stride=4)


@each_family
def test_pooling_is_named_in_timms_words(name):
    model, x = build_toy(name), images()
    with torch.no_grad():
        want = model(x)
        weights = model.get_classifier().state_dict()
        model.reset_classifier(7, "fast")
        model.get_classifier().load_state_dict(weights)
        assert relative_error(model(x), want) < 1e-5
    for build in (model.reset_classifier, lambda classes, pool: build_toy(name, num_classes=classes, global_pool=pool)):
        with pytest.raises(ValueError, match="global_pool 'mean' is unknown; choose one of timm's: 'avg', 'max'"):
            build(7, "mean")
        with pytest.raises(
            ValueError, match="global_pool '' leaves a map, which a classifier cannot take; give num_classes=0"
        ):
            build(7, "")


@each_family
def test_a_model_without_pooling_averages_once_it_gets_classes(name):
    model, x = build_toy(name, num_classes=0, global_pool=""), images()
    with torch.no_grad():
        assert model(x).ndim == 4
        with pytest.warns(UserWarning, match=r"reset_classifier\(5\) of a model without pooling: it averages now"):
            model.reset_classifier(5)
        want = model.get_classifier()(model.forward_features(x).mean((2, 3)))
        assert relative_error(model(x), want) < 1e-5


@each_family
def test_the_width_in_front_of_the_classifier_is_stated(name):
    model, x = build_toy(name), images()
    level = model.feature_info[-2]["num_chs"]
    with torch.no_grad():
        for pool in ("avg", "catavgmax"):
            model.reset_classifier(5, pool)
            assert model.forward_head(model.forward_features(x), pre_logits=True).shape[1] == model.head_hidden_size
            assert model(x).shape == (2, 5)
        model.prune_intermediate_layers([-2], prune_norm=True)
        model.reset_classifier(5, "avg")
        assert model(x).shape == (2, 5)
        assert model.head_hidden_size == model.num_features == level


@each_family
def test_built_on_a_device_in_a_type(name):
    model = timm.create_model(timm_name(name), device="meta", dtype=torch.bfloat16, **toy(name).options)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.bfloat16}
    model.reset_classifier(0)
    model.reset_classifier(5)
    assert {(p.device.type, p.dtype) for p in model.get_classifier().parameters()} == {("meta", torch.bfloat16)}
    levels = timm.create_model(timm_name(name), features_only=True, dtype=torch.bfloat16, **toy(name).options).eval()
    with torch.no_grad():
        assert {level.dtype for level in levels(images().bfloat16())} == {torch.bfloat16}


def test_weights_for_a_model_without_memory_are_refused(tmp_path):
    torch.save(timm.create_model("smt_nano").state_dict(), tmp_path / "smt.pt")
    with pytest.raises(ValueError, match=r"smt.pt: the model is on the meta device, which holds no weights"):
        convattn.create_model("smt_nano", pretrained_path=tmp_path / "smt.pt", device="meta")


def test_an_unknown_option_is_the_error_that_timms_callers_expect():
    for error in (TypeError, ValueError):
        with pytest.raises(error, match="unknown option 'not_an_option' of smt_nano"):
            timm.create_model("smt_nano", not_an_option=1)


def test_names_of_timms_registry_are_ours_too():
    with torch.device("meta"):
        model = convattn.create_model("convattn_nextvit_nano")
    assert model.default_cfg["architecture"] == "convattn_nextvit_nano"


@each_family
def test_pefts_low_rank_adapters_train_on_every_kind_of_layer(name):
    from peft import LoraConfig, get_peft_model

    model = shallow_toy(name)
    convolutions = [
        key for key, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.groups == 1
    ]
    x = images()
    with torch.no_grad():
        want = model(x)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[*convolutions, *_linear(model)]))
    assert relative_error(adapted.eval()(x), want) < 1e-5
    adapted.train()(x).square().sum().backward()
    assert all(p.grad is not None for key, p in adapted.named_parameters() if "lora_B" in key)


def _linear(model: nn.Module) -> list[str]:
    return [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]


_SCRIPT = """
import sys
import timm
from beside import WORD

if __name__ == "__main__":
    print(WORD, timm.is_model("smt_nano"), sys.argv[1:])
    sys.exit(3)
"""


def test_a_script_runs_with_our_names_among_timms(tmp_path, monkeypatch, capsys):
    (tmp_path / "beside.py").write_text("WORD = 'found'")
    (tmp_path / "train.py").write_text(_SCRIPT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["convattn.timm", str(tmp_path / "train.py"), "--model", "smt_nano"])
    with pytest.raises(SystemExit) as stopped:
        run_script()
    assert stopped.value.code == 3
    assert capsys.readouterr().out == "found True ['--model', 'smt_nano']\n"


def test_no_script_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convattn.timm", "absent.py"])
    with pytest.raises(SystemExit) as stopped:
        run_script()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("absent.py: not a file; give a script: python -m convattn.timm")
