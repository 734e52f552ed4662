"""A block in the place of a convolution: shapes, keys, weights set aside, refusals."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

import convattn
from convattn.surgery.replacement import Replacement
from toys import build_toy, randomise_norms, relative_error, toy_images


def resnet():
    model = timm.create_model("test_resnet", num_classes=3)
    randomise_norms(model)
    return model.eval(), torch.randn(2, 3, 64, 64)


def shapes(model, images):
    """The shapes of all maps of a forward pass that both networks have."""
    found = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _a, out, name=name: found.update({name: out.shape}))
    with torch.no_grad():
        model(images)
    return found


def test_every_3x3_that_keeps_its_width_is_replaced():
    model, images = resnet()
    before = copy.deepcopy(model.state_dict())
    changed = convattn.replace(model, "cot")
    expected = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels == module.out_channels
    ]
    assert expected == [entry["place"] for entry in changed.surgery] != []
    assert {entry["stride"] for entry in changed.surgery} == {1, 2}
    assert all(isinstance(changed.get_submodule(name), Replacement) for name in expected)
    want, got = shapes(copy.deepcopy(model), images), shapes(copy.deepcopy(changed), images)
    assert all(got[name] == shape for name, shape in want.items())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_ordinary_checkpoint_loads_and_comes_back():
    model, images = resnet()
    trained, _ = resnet()
    changed = convattn.replace(model, "cot")
    fitted = changed.load_state_dict(trained.state_dict(), strict=False)
    assert fitted.unexpected_keys == []
    new = set(changed.state_dict()) - set(model.state_dict())
    # (To torch a batch norm's counter is never missing from a file that knows nothing of the batch norm.)
    assert set(fitted.missing_keys) == {key for key in new if not key.endswith("num_batches_tracked")}
    assert all(".mixer." in key for key in new)
    with torch.no_grad():
        assert torch.equal(convattn.detach(convattn.replace(model, "cot"))(images), model(images))
        assert torch.equal(convattn.detach(changed)(images), trained(images))
        assert list(convattn.detach(changed).state_dict()) == list(model.state_dict())


def test_detach_takes_back_both_kinds():
    model, images = resnet()
    changed = convattn.attach(convattn.replace(model, "mhca", head_dim=8), "das", init="paper")
    assert {entry["kind"] for entry in changed.surgery} == {"attach", "replace"}
    with torch.no_grad():
        assert relative_error(changed(images), model(images)) > 1e-3
        assert torch.equal(convattn.detach(changed)(images), model(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_detach_puts_back_has_the_type_and_the_mode_of_what_it_takes_away(dtype):
    model, _ = resnet()
    changed = convattn.replace(convattn.attach(model, "se"), "cot").to(dtype).train()
    restored = convattn.detach(changed)
    assert {tensor.dtype for tensor in restored.state_dict().values() if tensor.is_floating_point()} == {dtype}
    assert all(module.training for module in restored.modules())


def test_gradients_reach_the_new_blocks():
    model, images = resnet()
    changed = convattn.replace(model, "e_mhsa", match=lambda name, conv: name.startswith("layer4") and "conv2" in name)
    changed.train()(images).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.any()
        for k, p in changed.named_parameters()
        if ".mixer." in k and "k.bias" not in k
    )


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, padding=1, stride=2),
        dict(kernel_size=3, padding=1, stride=2, groups=4),
        dict(kernel_size=1, stride=2),
        dict(kernel_size=5, padding=2, stride=3),
        dict(kernel_size=3),
        dict(kernel_size=3, padding=2, dilation=2),
        dict(kernel_size=3, padding=2, dilation=2, stride=2),
        dict(kernel_size=(3, 1), padding=(1, 0), stride=(2, 1)),
        dict(kernel_size=3, padding="same", dilation=2),
        dict(kernel_size=3, padding="valid"),
    ],
    ids=str,
)
@pytest.mark.parametrize("out_channels", [16, 32])
def test_the_output_has_the_size_of_the_convolutions(options, size, out_channels):
    conv = nn.Conv2d(16, out_channels, **options)
    block = convattn.replace(nn.Sequential(conv), "cot", match=lambda name, conv: True).eval()
    x = torch.randn(1, 16, *size)
    assert block(x).shape == conv(x).shape


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_timms_same_padding_keeps_its_size(size):
    conv = Conv2dSame(16, 16, 3, stride=2)
    block = convattn.replace(nn.Sequential(conv), "cot", match=lambda name, conv: True).eval()
    x = torch.randn(1, 16, *size)
    assert block(x).shape == conv(x).shape


def test_a_stride_is_an_average_pool_in_front():
    block = convattn.replace(nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1)), "cot")[0].eval()
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        pooled = torch.nn.functional.avg_pool2d(x, 3, 2, 1)
        assert torch.equal(block(x), block.mixer(pooled))


def test_copies_and_pickles():
    model, images = resnet()
    changed = convattn.replace(model, "sam").eval()
    with torch.no_grad():
        want = changed(images)
        for copied in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
            assert torch.equal(copied(images), want)
            assert torch.equal(convattn.detach(copied)(images), model(images))


def test_fused_and_counted():
    model, images = resnet()
    changed = convattn.replace(model, "cot").double().eval()
    randomise_norms(changed)
    with torch.no_grad():
        fused = convattn.fuse(changed)
        assert relative_error(fused(images.double()), changed(images.double())) < 1e-9
    plain, new = (convattn.count(m, (3, 64, 64)) for m in (model, changed))
    assert new.parameters - plain.parameters == sum(entry["parameters"] for entry in changed.surgery)


def test_fused_inside_a_block_that_has_an_inference_form():
    model, images = build_toy("nextvit_nano").double(), toy_images("nextvit_nano").double()
    changed = convattn.replace(model, "cot")
    assert changed.surgery
    randomise_norms(changed)
    changed.eval()
    with torch.no_grad():
        assert relative_error(convattn.fuse(changed)(images), changed(images)) < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mixer="cott"), r"unknown mixer 'cott'; nearest: cot"),
        (dict(mixer="cot", heads=2), r"unknown option 'heads' of mixer cot; known: fusion, kernel_size"),
        (dict(mixer="cot", init="identity"), r"unknown option 'init' of mixer cot"),
        (dict(mixer="cot", match=3), r"match 3 is unknown; choose conv3x3 or a function"),
        (dict(mixer="cot", kernel_size="x"), r"cot at conv1.3 \(16 channels\): .*not supported between"),
        (dict(mixer="cot", match="conv7x7"), r"match 'conv7x7' is unknown; choose conv3x3 or a function"),
        (dict(mixer="cot", match=lambda name, conv: False), r"ResNet has no convolution that the function given"),
        (dict(mixer="gma"), r"gma at .*\(\d+ channels\): dim \d+ does not divide"),
    ],
)
def test_refusals(arguments, message):
    model, _ = resnet()
    with pytest.raises(ValueError, match=message) as error:
        convattn.replace(model, **arguments)
    assert "\n" not in str(error.value)
    assert not any(isinstance(module, Replacement) for module in model.modules())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3, padding=4),
        nn.Conv2d(16, 16, 4, padding="same"),  # these pad more on one side
        nn.Conv2d(16, 16, 4, dilation=2, padding=3),
        Conv2dSame(16, 16, 4, stride=2),
    ],
    ids=str,
)
def test_a_convolution_without_a_pool_of_its_size_is_refused(conv):
    with pytest.raises(
        ValueError, match=r"cot at 0 \(16 channels\): no pool gives the output size of a convolution of"
    ):
        convattn.replace(nn.Sequential(conv), "cot", match=lambda name, conv: True)


def test_nothing_that_matches_is_an_error():
    with pytest.raises(
        ValueError, match=r"Sequential has no 3×3 convolution that keeps its width and is not depthwise"
    ):
        convattn.replace(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3)), "cot")


def test_a_convolution_under_several_names_is_replaced_under_all_and_comes_back():
    conv = nn.Conv2d(16, 16, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), conv, nn.Sequential(nn.ReLU(), conv)).eval()
    images = torch.randn(2, 3, 9, 9)
    by_another_name = convattn.replace(model, "cot", match=lambda name, _: name == "2.1")
    for changed in (convattn.replace(model, "cot"), by_another_name):
        assert [entry["place"] for entry in changed.surgery] == ["1"]
        assert changed[1] is changed[2][1] and isinstance(changed[1], Replacement)
        restored = convattn.detach(changed.eval())
        assert restored[1] is restored[2][1] is not conv
        with torch.no_grad():
            assert relative_error(convattn.fuse(changed)(images), changed(images)) < 1e-5
            assert torch.equal(restored(images), model(images))


def test_a_convolution_with_something_on_it_is_not_thrown_away_with_it():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match=r"^1 has a forward hook, which would be lost with it; remove that first, or"):
        convattn.replace(model, "cot")
    assert convattn.replace(model, "cot", match=lambda name, _: name == "0").surgery[0]["place"] == "0"
