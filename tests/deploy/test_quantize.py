"""INT8: what each layer costs, and which layers stay in float32."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from convattn.deploy import quantize
from convattn.deploy.quantize import quantise
from convattn.deploy.runtimes import openvino
from convattn.deploy.runtimes.runtime import Request
from openvino_kernels import executed
from toys import build_toy, relative_error

openvino_library = pytest.importorskip("openvino", reason="needs the extra deploy")
pytest.importorskip("nncf", reason="needs the extra deploy")


class Small(nn.Module):
    """Two convolutions with a residual, a product of maps, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        x = self.first(images).relu()
        x = x + self.second(x)
        tokens = x.flatten(2)
        tokens = (tokens @ tokens.mT).softmax(-1) @ tokens
        return self.head(tokens.mean(-1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def file(tmp_path_factory, model, images):
    path = tmp_path_factory.mktemp("int8") / "model.xml"
    openvino.write(model, Request(images[:2], "batch", "int8", images[:20].split(1)), path)
    return path


def test_an_int8_file_is_near_the_model_and_computes_with_8_bits(file, model, images):
    (got,) = openvino.open_file(file)(images[20:])
    with torch.inference_mode():
        assert 1e-5 < relative_error(got, model(images[20:])) < 0.05
    assert executed(file)["Convolution", "i8"] == 2
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert file.with_suffix(".bin").stat().st_size < 2 * weights  # bytes; in float32 it would be 4


def test_layers_with_weights_are_quantised_and_nothing_else(file):
    layers = openvino.quantisation_report(file)
    assert [layer.kind for layer in layers] == ["Convolution", "Convolution", "MatMul"]
    assert [layer.name for layer in layers] == ["first", "second", "head"]
    assert all(0 < layer.own_error < 0.05 and 0 < layer.output_error < 0.05 for layer in layers)
    # A layer of which nothing but a linear map follows errs in the output as it errs itself.
    assert layers[-1].output_error == pytest.approx(layers[-1].own_error, rel=0.3)


def graph(model, images):
    converted = openvino_library.convert_model(torch.export.export(model, (images,)))
    converted.reshape(list(images.shape))
    return converted


def test_the_dearest_layers_stay_in_float32_until_the_others_keep_to_the_budget(model, images):
    converted = graph(model, images[:2])
    calibration = images[:20].split(1)
    _, free = quantise(converted, calibration, budget=1.0)
    assert not any(layer.kept for layer in free)
    by_cost = sorted(free, key=lambda layer: -layer.output_error)
    squares = [layer.output_error**2 for layer in by_cost]
    budget = 0.5 * (sum(squares[1:]) ** 0.5 + sum(squares) ** 0.5)  # too little for all, enough without the dearest
    quantised, layers = quantise(converted, calibration, budget=budget)
    assert [layer.name for layer in layers if layer.kept] == [by_cost[0].name]
    assert [layer.output_error for layer in layers] == [layer.output_error for layer in free]

    def error(form):
        run = openvino_library.Core().compile_model(form, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return relative_error(torch.from_numpy(run(images[20:22].numpy())[0]), want)

    with torch.inference_mode():
        want = model(images[20:22])
    nothing, layers = quantise(converted, calibration, budget=1e-9)
    assert all(layer.kept for layer in layers)
    assert error(nothing) < 1e-5 < error(quantised)


def test_more_layers_stay_in_float32_where_the_finished_form_errs_more_than_expected(model, images, monkeypatch):
    converted, calibration = graph(model, images[:2]), images[:20].split(1)
    _, honest = quantise(converted, calibration, budget=1.0)
    budget = 0.3 * sum(layer.output_error**2 for layer in honest) ** 0.5
    costs = quantize._costs

    def too_low(*arguments):
        return [dataclasses.replace(layer, output_error=layer.output_error / 10) for layer in costs(*arguments)]

    monkeypatch.setattr(quantize, "_costs", too_low)
    quantised, layers = quantise(converted, calibration, budget=budget)
    assert any(layer.kept for layer in layers)
    with torch.inference_mode():
        got = torch.from_numpy(quantize.computed(quantised, [images[20:22].numpy()])[0][0])
        assert relative_error(got, model(images[20:22])) < 3 * budget


class Fork(nn.Module):
    """Convolutions without bias that are read twice: by a branch beside a sum, and by the mean of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.branch = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.second, self.head = nn.Conv2d(16, 16, 1, bias=False), nn.Conv2d(16, 5, 1, bias=False)

    def forward(self, images):
        x = self.first(images)
        x = self.second(x + self.branch(x).relu())
        return self.head((x - x.mean(1, keepdim=True)).abs()).mean((2, 3))


@pytest.mark.parametrize("dynamic", ["none", "batch", "all"])
@pytest.mark.parametrize("scale", [1, 1e-5])
def test_a_layer_that_is_read_twice_and_small_activations_keep_to_8_bits(tmp_path, images, dynamic, scale):
    """The plug-in scales what such a layer gives twice where the batch is free; NNCF's ranges end at 8e-5."""
    torch.manual_seed(0)
    model, path, images = Fork().eval(), tmp_path / "model.xml", images * scale
    openvino.write(model, Request(images[:2], dynamic, "int8", images[:20].split(1)), path)
    layers = openvino.quantisation_report(path)
    assert len(layers) == 4
    assert all(layer.own_error < 0.03 and layer.output_error < 0.03 for layer in layers)
    (got,) = openvino.open_file(path)(images[20:22])
    with torch.inference_mode():
        assert relative_error(got, model(images[20:22])) < 0.05
    assert sum(layer.kept for layer in layers) <= 1


def test_a_level_that_is_read_again_keeps_its_name(images):
    """What is inserted behind such a layer takes over the name of the output."""
    torch.manual_seed(0)

    class Levels(Fork):
        def forward(self, images):
            x = self.first(images)
            return x, self.branch(x)

    converted = graph(Levels().eval(), images[:2])
    for index, output in enumerate(converted.outputs):
        output.get_tensor().set_names({f"level_{index}"})
    quantised, _ = quantise(converted, images[:20].split(1), budget=1.0)
    assert [output.get_names() for output in quantised.outputs] == [{"level_0"}, {"level_1"}]
    assert [output.get_names() for output in converted.outputs] == [{"level_0"}, {"level_1"}]


def test_errors_are_measured_on_images_from_the_whole_folder(images, model, monkeypatch):
    seen = []
    costs = quantize._costs
    monkeypatch.setattr(quantize, "_costs", lambda *arguments: seen.append(arguments[2]) or costs(*arguments))
    quantise(graph(model, images[:2]), images[:20].split(1), budget=1.0)
    (pairs,) = seen
    assert torch.equal(torch.cat([torch.from_numpy(pair) for pair in pairs]), images[:20:5])


def test_an_extreme_that_one_image_has_is_not_cut_off(model, images):
    """NNCF's own ranges are means over the images: what one of them has alone would be lost."""
    calibration = list(images[:20].split(1))
    calibration[3] = calibration[3] * 20
    quantised, _ = quantise(graph(model, images[:1]), calibration, budget=1.0)
    run = openvino_library.Core().compile_model(quantised, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = torch.from_numpy(run(calibration[3].numpy())[0])
    with torch.inference_mode():
        assert relative_error(got, model(calibration[3])) < 0.1


def test_a_fixed_batch_is_filled_with_the_first_images(tmp_path, model, images):
    path = tmp_path / "model.xml"
    openvino.write(model, Request(images[:2], "none", "int8", images[:5].split(1)), path)
    (got,) = openvino.open_file(path)(images[:2])
    with torch.inference_mode():
        assert relative_error(got, model(images[:2])) < 0.05


def test_nothing_is_printed(tmp_path, model, images, capfd):
    openvino.write(model, Request(images[:2], "none", "int8", images[:4].split(1)), tmp_path / "model.xml")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "INFO" not in captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "features_only"),
    [
        *itertools.product(("smt_nano", "groupmixformer_nano", "nextvit_nano", "cotnet_nano"), [False]),
        ("resnet18_das_cifar", False),
        ("smt_nano", True),
    ],
)
def test_every_family_in_int8(tmp_path, name, features_only):
    torch.manual_seed(0)
    model = build_toy(name, features_only=True) if features_only else build_toy(name)
    images = torch.randn(12, 3, 32, 48)
    path = tmp_path / "model.xml"
    openvino.write(model, Request(images[:2], "batch", "int8", images[:8].split(1)), path)
    assert any(not layer.kept for layer in openvino.quantisation_report(path))
    with torch.inference_mode():
        want = model(images[8:])
    for got, level in zip(openvino.open_file(path)(images[8:]), want if features_only else [want], strict=True):
        assert relative_error(got, level) < 0.15
