"""OpenVINO files: every family's numbers, the precisions, the description inside, what is refused."""

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import nn

from convattn.deploy.fuse import fuse
from convattn.deploy.runtimes import openvino
from convattn.deploy.runtimes.runtime import Request, UnreadableFile, as_list
from convattn.mixers.efficient_attention import EfficientAttention
from in_threads import worst_in_threads
from openvino_kernels import executed
from toys import build_toy, lively, relative_error, shallow_toy, toy_images

pytest.importorskip("openvino", reason="needs the extra deploy")

FAMILIES = ("smt_nano", "groupmixformer_nano", "nextvit_nano", "cotnet_nano", "resnet18_das_cifar")


def written(folder, model, images, **request):
    path = folder / "model.xml"
    openvino.write(model, Request(images, **request), path)
    return path


def small_network():
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(576, 5)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def file(tmp_path_factory, images):
    return written(tmp_path_factory.mktemp("small"), small_network(), images, dynamic="batch")


@pytest.fixture
def copy(tmp_path, file):
    for source in (file, file.with_suffix(".bin")):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path / file.name


def test_four_threads_get_what_one_gets(file):
    run = openvino.open_file(file)
    assert worst_in_threads(lambda images: run(images)[0], [torch.randn(2, 3, 8, 8) for _ in range(4)]) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_its_numbers(tmp_path, name):
    torch.manual_seed(0)
    model, images = shallow_toy(name), toy_images(name)
    path = written(tmp_path, fuse(model), images)
    (got,) = openvino.open_file(path)(images)
    with torch.inference_mode():
        assert relative_error(got, model(images)) <= 1e-5
    kinds, precisions = zip(*executed(path), strict=True)
    assert not {"Unknown", "Reference"} & set(kinds)  # the plug-in has a kernel of its own for everything
    assert not {"bf16", "f16"} & set(precisions)


@pytest.mark.slow
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("dynamic", ["batch", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_at_other_sizes(tmp_path, name, dynamic, features_only):
    torch.manual_seed(0)
    model, traced = build_toy(name, features_only=features_only), toy_images(name)
    run = openvino.open_file(written(tmp_path, fuse(model), traced, dynamic=dynamic))
    height, width = traced.shape[2:]
    more = [] if dynamic == "batch" else [(height + 9, width + 3), (64, 96), (height + 1, 80), (height, width + 32)]
    shapes = [(batch, size) for size in ((height, width), *more) for batch in (2, 1, 3)]
    for batch, size in (*shapes, *shapes[::-4], *shapes[1::2]):
        images = torch.randn(batch, 3, *size)
        with torch.inference_mode():
            for got, want in zip(run(images), as_list(model(images)), strict=True):
                assert relative_error(got, want) <= 1e-5, (batch, size)


def test_what_is_one_at_the_traced_size_may_be_more_at_others(tmp_path):
    """A map of one column, and of one key."""
    torch.manual_seed(0)
    model = lively(EfficientAttention(16, head_dim=8, sr_ratio=2)).eval()
    run = openvino.open_file(written(tmp_path, model.fused(), torch.randn(2, 16, 4, 1), dynamic="all"))
    for shape in ((2, 16, 4, 1), (2, 16, 5, 4), (3, 16, 5, 4), (1, 16, 4, 1), (3, 16, 4, 7), (1, 16, 5, 4)):
        images = torch.randn(shape)
        with torch.inference_mode():
            assert relative_error(run(images)[0], model(images)) <= 1e-5, shape


@pytest.mark.parametrize("affine", [True, False])
def test_norms_over_channels_are_written_without_transpositions(tmp_path, affine):
    norm = LayerNorm2d(6, eps=1e-5, affine=affine).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    maps = torch.randn(2, 6, 5, 3, dtype=torch.float64) + 3
    with torch.no_grad():
        assert relative_error(openvino.PlanarNorm(norm)(maps), norm(maps)) < 1e-12
    model = nn.Sequential(nn.Conv2d(3, 6, 3), LayerNorm2d(6, affine=affine), nn.Conv2d(6, 4, 3)).eval()
    path = written(tmp_path, model, torch.randn(1, 3, 9, 8))
    assert "Transpose" not in openvino.operators(path)
    assert "Transpose" not in {kind for kind, _ in executed(path)}


def test_levels_of_a_pyramid(tmp_path):
    model = shallow_toy("smt_nano", features_only=True, out_indices=(1, 3))
    images = toy_images("smt_nano")
    levels = openvino.open_file(written(tmp_path, fuse(model), images))(images)
    with torch.inference_mode():
        for got, want in zip(levels, model(images), strict=True):
            assert relative_error(got, want) <= 1e-5


def test_operators_are_those_of_the_graph(file):
    found = openvino.operators(file)
    assert found["Convolution"] == 2
    assert found["MatMul"] == 1
    assert not {"Const", "Parameter", "Result"} & set(found)


def test_fp16_halves_the_weights_and_computes_in_float32(tmp_path, file, images):
    path = written(tmp_path, small_network(), images, dynamic="batch", precision="fp16")
    assert path.with_suffix(".bin").stat().st_size < 0.55 * file.with_suffix(".bin").stat().st_size
    rounded = small_network()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    (got,) = openvino.open_file(path)(images)
    with torch.inference_mode():
        assert relative_error(got, rounded(images)) <= 1e-5
        assert relative_error(got, small_network()(images)) < 1e-3  # 11 bits: 2.4e-4 a weight, and they average out
    assert ("Convolution", "f32") in executed(path)


def test_bf16_is_remembered_by_the_file(tmp_path, images):
    from openvino import Core

    if "BF16" not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    path = written(tmp_path, small_network(), images, precision="bf16")
    (got,) = openvino.open_file(path)(images)
    with torch.inference_mode():
        error = relative_error(got, small_network()(images))
    assert 1e-5 < error < 2e-2  # 8 bits: 2e-3 in each of three layers
    assert ("Convolution", "bf16") in executed(path)
    assert openvino.digest(path) != openvino.digest(written(tmp_path, small_network(), images))


def test_the_description_comes_back_and_changes_neither_numbers_nor_digest(copy, images):
    digest, (before,) = openvino.digest(copy), openvino.open_file(copy)(images)
    assert openvino.read_metadata(copy) is None
    awkward = '{"name": "a \\"b\\" <c> & é ☃",\n\t"lines": [1,\r\n 2]}'
    for text in ("something longer that goes", awkward):
        openvino.write_metadata(copy, text)
        assert openvino.read_metadata(copy) == text
        assert openvino.digest(copy) == digest
    (after,) = openvino.open_file(copy)(images)
    assert torch.equal(after, before)


def test_the_digest_sees_the_weights_and_the_graph(copy):
    digest = openvino.digest(copy)
    graph, weights = copy.read_text(), copy.with_suffix(".bin").read_bytes()
    copy.write_text(graph.replace('"1, 1"', '"2, 2"', 1))
    assert openvino.digest(copy) != digest
    copy.write_text(graph)
    copy.with_suffix(".bin").write_bytes(bytes([weights[0] ^ 1]) + weights[1:])
    assert openvino.digest(copy) != digest


@pytest.mark.parametrize("read", [openvino.open_file, openvino.digest])
def test_missing_and_short_weights_are_told(copy, read):
    weights = copy.with_suffix(".bin")
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UnreadableFile, match=rf"model.bin: has 100 bytes where model.xml needs {size}; copy it again"):
        read(copy)
    weights.unlink()
    with pytest.raises(UnreadableFile, match=r"the weights model.bin are not beside it; copy both files together"):
        read(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "model.xml: is no OpenVINO file, or damaged or cut short"),
        (b"<net><layers>", "model.xml: is no OpenVINO file, or damaged or cut short"),
        (b"<html></html>", "model.xml: is no OpenVINO file; its root is <html>, not <net>"),
        (None, "model.xml: no such file"),
    ],
)
def test_what_is_no_such_file_is_told(tmp_path, content, message):
    path = tmp_path / "model.xml"
    if content is not None:
        path.write_bytes(content)
    for read in (openvino.open_file, openvino.operators, openvino.read_metadata, openvino.digest):
        with pytest.raises(UnreadableFile, match=message):
            read(path)


def test_images_of_another_shape_are_refused(file):
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 9, 8\) given; the file takes \[\?,3,8,8\]"):
        openvino.open_file(file)(torch.zeros(2, 3, 9, 8))


def test_int8_without_images_is_refused(tmp_path, images):
    with pytest.raises(ValueError, match="int8 without calibration images"):
        written(tmp_path, small_network(), images, precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_other_files_say_nothing_of_quantisation(file):
    assert openvino.quantisation_report(file) == ()


BOMB = """<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: BOMB + text.partition("?>")[2].replace("<net ", '<net b="&b;" ', 1), "declares a document type"),
        (lambda text: text.encode("utf-16"), "declares a document type, or is no UTF-8"),
        (
            lambda text: text.replace("<layers>", "<layers>" + "<a>" * 5000 + "</a>" * 5000, 1),
            "lie in one another more",
        ),
        (lambda text: text.replace('offset="', 'offset="-', 1), "is damaged: a layer's weights have no place in"),
        (lambda text: text.replace('offset="', 'offset="1e', 1), "is damaged: a layer's weights have no place in"),
        (lambda text: text.replace('offset="', 'offset="99999999', 1), "needs"),
        (lambda text: text.replace('"1.0"', '"1.0" encoding="utf-99"', 1), "is no OpenVINO file, or damaged"),
        (lambda text: text.replace('type="Convolution"', 'type="Evil"', 1), r"OpenVINO cannot open it \(.+\)$"),
        (lambda text: text.replace("?>", "?><!-- a remark -->", 1), None),
    ],
)
def test_a_graph_that_nobody_wrote_so_is_refused_in_one_line(copy, change, message):
    changed = change(copy.read_text())
    copy.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    if message is None:
        assert openvino.open_file(copy) and openvino.digest(copy)
        return
    with pytest.raises(UnreadableFile, match=message) as caught:
        openvino.open_file(copy)
    assert str(copy.parent) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_without_an_end_are_not_read_to_it(copy):
    with open(copy.with_suffix(".bin"), "r+b") as weights:
        weights.truncate(1 << 40)  # sparse
    with pytest.raises(UnreadableFile, match=r"model.xml: its weights have 1099511627776 bytes where \d+ are needed"):
        openvino.digest(copy)
