"""PyTorch's two kinds of `.pt2` and ONNX: what is written runs, is described, and is refused when it is damaged."""

import json
import pickle
import zipfile
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from convattn.deploy.formats import format_of, formats
from convattn.deploy.runtimes import aot_inductor, onnx, torch_export
from convattn.deploy.runtimes.pt2_archive import contents
from convattn.deploy.runtimes.runtime import CannotRunHere, Request, UnreadableFile
from in_threads import worst_in_threads
from tiny_exports import SIZE, tiny_net, write
from toys import build_toy, relative_error, toy_images

NAMES = ("onnx", "torch_export", "aot_inductor")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each format, batch free; the tests copy what they change."""
    folder = tmp_path_factory.mktemp("files")
    return {name: write(folder, name) for name in NAMES}


def changed(path, folder, change):
    """A copy of an archive with the bytes of each entry put through `change(name, content)`."""
    copy = folder / path.name
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for entry in source.infolist():
            target.writestr(entry, change(entry.filename, source.read(entry)))
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_models_numbers_for_any_batch(files, name):
    run = formats()[name].open_file(files[name])
    for batch in (1, 2, 5):
        images = torch.randn(batch, *SIZE)
        (output,) = run(images)
        assert relative_error(output, tiny_net()(images)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_four_threads_get_what_one_gets(files, name):
    run = formats()[name].open_file(files[name])
    assert worst_in_threads(lambda images: run(images)[0], [torch.randn(2, *SIZE) for _ in range(4)]) < 1e-5


def test_a_bf16_program_rounds_what_it_computes_and_takes_half_the_room(files, tmp_path):
    path = write(tmp_path, "torch_export", precision="bf16")
    images = torch.randn(3, *SIZE)
    (output,) = torch_export.open_file(path)(images)
    assert output.dtype is torch.float32
    assert 1e-5 < relative_error(output, tiny_net()(images)) < 2e-2
    with zipfile.ZipFile(path) as small, zipfile.ZipFile(files["torch_export"]) as large:
        sizes = [sum(i.file_size for i in a.infolist() if "/weights/weight_" in i.filename) for a in (small, large)]
    assert sizes[0] * 2 == sizes[1]


@pytest.mark.parametrize("name", NAMES)
def test_metadata_are_replaced_and_no_part_of_the_digest(files, tmp_path, name):
    runtime, path = formats()[name], tmp_path / files[name].name
    path.write_bytes(files[name].read_bytes())
    before = runtime.digest(path)
    assert runtime.read_metadata(path) is None
    for text in ("first", "zweite\nZeile ü"):
        runtime.write_metadata(path, text)
        assert runtime.read_metadata(path) == text
        assert runtime.digest(path) == before
    images = torch.randn(2, *SIZE)
    assert relative_error(runtime.open_file(path)(images)[0], tiny_net()(images)) < 1e-5
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_is_of_the_contents(files, tmp_path):
    def other_weights(name, content):
        return content[:-1] + bytes([content[-1] ^ 1]) if name.endswith("weight_0") else content

    copy = changed(files["torch_export"], tmp_path, lambda name, content: content)
    assert torch_export.digest(copy) == torch_export.digest(files["torch_export"])
    copy = changed(files["torch_export"], tmp_path, other_weights)
    assert torch_export.digest(copy) != torch_export.digest(files["torch_export"])

    library = pytest.importorskip("onnx", reason="needs the extra onnx")
    proto = library.load(files["onnx"])
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    library.save(proto, tmp_path / "changed.onnx")
    assert onnx.digest(tmp_path / "changed.onnx") != onnx.digest(files["onnx"])


def test_operators_are_counted(files):
    assert onnx.operators(files["onnx"])["Conv"] == 1
    assert onnx.operators(files["onnx"])["Gelu"] == 1
    assert torch_export.operators(files["torch_export"])["aten.linear.default"] == 2


def test_aot_inductor_has_the_weights_laid_out_once(files):
    found = aot_inductor.operators(files["aot_inductor"])
    assert found["_linear_pointwise"] == 2  # not addmm_out, which lays out the weight at every call
    assert found["mkldnn__convolution_pointwise"] == 1
    assert any(name.startswith("cpp_fused") for name in found)


def test_onnx_says_its_opset_and_leaves_the_batch_free(files):
    library = pytest.importorskip("onnx", reason="needs the extra onnx")
    proto = library.load(files["onnx"])
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [onnx.OPSET]
    (images,) = proto.graph.input
    dims = images.type.tensor_type.shape.dim
    assert images.name == "images"
    assert dims[0].dim_param
    assert [dim.dim_value for dim in dims][1:] == list(SIZE)


class Levels(nn.Module):
    """A tensor, or a list of so many levels."""

    def __init__(self, count):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(count or 1))
        self.is_list = count is not None
        self.feature_info = SimpleNamespace(channels=list)  # by which a pyramid is known

    def forward(self, images):
        levels = [convolution(images) for convolution in self.convolutions]
        return levels if self.is_list else levels[0]


def _names_in_onnx(path):
    return [
        output.name for output in pytest.importorskip("onnx", reason="needs the extra onnx").load(path).graph.output
    ]


def _names_in_openvino(path):
    graph = pytest.importorskip("openvino", reason="needs the extra deploy").Core().read_model(path)
    return [output.any_name for output in graph.outputs]


def _names_in_core_ml(path):
    model = pytest.importorskip("coremltools", reason="needs the extra mobile").models.MLModel(
        str(path), skip_model_load=True
    )
    return [output.name for output in model.get_spec().description.output]


@pytest.mark.parametrize(("count", "names"), [(None, ["output"]), (1, ["level_0"]), (2, ["level_0", "level_1"])])
@pytest.mark.parametrize(
    ("name", "library", "names_in"),
    [
        ("onnx", "onnxscript", _names_in_onnx),
        ("openvino", "openvino", _names_in_openvino),
        ("core_ml", "coremltools", _names_in_core_ml),
    ],
)
def test_outputs_have_the_same_names_in_every_format(tmp_path, name, library, names_in, count, names):
    pytest.importorskip(library, reason=f"needs the extra of {name}")
    path = write(tmp_path, name, "none", batch=1, model=Levels(count).eval())
    assert names_in(path) == names


def test_onnx_keeps_what_others_have_put_beside_our_metadata(files, tmp_path):
    library = pytest.importorskip("onnx", reason="needs the extra onnx")
    proto = library.load(files["onnx"])
    proto.metadata_props.add(key="author", value="somebody")
    library.save(proto, tmp_path / "m.onnx")
    onnx.write_metadata(tmp_path / "m.onnx", "ours")
    found = {entry.key: entry.value for entry in library.load(tmp_path / "m.onnx").metadata_props}
    assert found == {"author": "somebody", "convattn": "ours"}


def test_onnx_refuses_a_model_of_more_than_images(tmp_path):
    class Pair(torch.nn.Module):
        def forward(self, a, b):
            return a + b

    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    path = tmp_path / "pair.onnx"
    torch.onnx.export(
        Pair().eval(), (torch.ones(2), torch.ones(2)), path, dynamo=True, verbose=False, external_data=False
    )
    with pytest.raises(UnreadableFile, match=r"pair.onnx: has the inputs a, b; a model of images has one"):
        onnx.open_file(path)


@pytest.mark.parametrize("damage", ["missing", "empty", "noise", "cut", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_in_one_line(files, tmp_path, capfd, name, damage):
    runtime, path = formats()[name], tmp_path / f"broken{formats()[name].SUFFIX}"
    whole = files[name].read_bytes()
    content = {"empty": b"", "noise": bytes(range(256)) * 9, "cut": whole[: len(whole) // 2], "text": b"a model\n" * 99}
    if damage != "missing":
        path.write_bytes(content[damage])
    for read in (runtime.open_file, runtime.operators, runtime.read_metadata, runtime.digest):
        with pytest.raises(
            UnreadableFile, match=r"broken\.(onnx|pt2): (no such file|is no|ONNX Runtime cannot)"
        ) as got:
            read(path)
        assert "\n" not in str(got.value)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_flipped_bit_is_found(files, tmp_path):
    path, content = tmp_path / "flipped.pt2", bytearray(files["torch_export"].read_bytes())
    with zipfile.ZipFile(files["torch_export"]) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("weight_0"))
    content[content.index(b"weight_0", entry.header_offset) + 100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UnreadableFile, match=r"flipped.pt2: is no .pt2 file, or damaged or cut short \(Bad CRC-32"):
        torch_export.digest(path)


def test_a_program_that_torch_does_not_understand_is_refused_quietly(files, tmp_path, capfd):
    copy = changed(
        files["torch_export"], tmp_path, lambda name, content: b"{}" if name.endswith("models/model.json") else content
    )
    with pytest.raises(UnreadableFile, match=r": PyTorch 2\..* cannot read its program \(.*\); export it again$"):
        torch_export.open_file(copy)
    assert capfd.readouterr().err == ""


def test_the_two_kinds_of_pt2_are_told_apart(files, tmp_path):
    assert contents(files["torch_export"]) == "torch_export"
    assert contents(files["aot_inductor"]) == "aot_inductor"
    with pytest.raises(UnreadableFile, match="is an AOTInductor package, not an exported program"):
        torch_export.open_file(files["aot_inductor"])
    with pytest.raises(UnreadableFile, match="is an exported program, not an AOTInductor package"):
        aot_inductor.open_file(files["torch_export"])
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("photographs/cat.txt", pickle.dumps("a cat"))
    with pytest.raises(UnreadableFile, match=r"other.pt2: is an archive without an exported program or an AOTInductor"):
        contents(tmp_path / "other.pt2")


def test_aot_inductor_does_not_read_past_the_end_of_smaller_images(files):
    run = aot_inductor.open_file(files["aot_inductor"])
    with pytest.raises(ValueError, match=r"takes images of shape \(any, 3, 16, 12\), not \(2, 3, 8, 12\)"):
        run(torch.randn(2, 3, 8, 12))
    with pytest.raises(ValueError, match=r"not \(3, 16, 12\)"):
        run(torch.randn(3, 16, 12))


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ({"AOTI_MACHINE": "riscv64"}, r"compiled for \('linux', 'riscv64'\), and this is \('linux', '.*'\)"),
        ({"AOTI_CPU_ISA": "AVX512 AVX512_VNNI"}, r"compiled for AVX512, which this processor lacks; export it here"),
    ],
)
@pytest.mark.slow  # half a minute of compiling, for what is compared in two lines
def test_aot_inductor_refuses_the_code_of_another_machine(files, tmp_path, monkeypatch, noted, message):
    def elsewhere(name, content):
        return json.dumps({**json.loads(content), **noted}) if name.endswith("_metadata.json") else content

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(CannotRunHere, match=message):
        aot_inductor.open_file(changed(files["aot_inductor"], tmp_path, elsewhere))


def test_aot_inductor_needs_a_compiler_and_its_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"m.bin: an AOTInductor package ends in .pt2; write to .*m.pt2"):
        aot_inductor.write(tiny_net(), Request(torch.randn(2, *SIZE)), tmp_path / "m.bin")
    without_compiler = torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")})
    message = r"there is no compiler; install g\+\+ or clang\+\+, or name one in CXX"
    with without_compiler, pytest.raises(CannotRunHere, match=message):
        aot_inductor.write(tiny_net(), Request(torch.randn(2, *SIZE)), tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_suffix_names_the_first_format_that_has_it(tmp_path):
    assert format_of(tmp_path / "m.pt2") == "torch_export"
    assert format_of(tmp_path / "m.pt2", "aot_inductor") == "aot_inductor"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["smt_nano", "groupmixformer_nano", "nextvit_nano", "cotnet_nano", "resnet18_das_cifar"]
)
def test_every_family_compiles_ahead_of_time(tmp_path, name, precision):
    from convattn.deploy.fuse import fuse

    model, images = build_toy(name), toy_images(name)
    aot_inductor.write(fuse(model), Request(images, "batch", precision), tmp_path / "m.pt2")
    run = aot_inductor.open_file(tmp_path / "m.pt2")
    for batch in (1, 3):
        images = toy_images(name, batch)
        assert relative_error(run(images)[0], model(images)) < {"fp32": 1e-4, "bf16": 5e-2}[precision]


def compressed(path, name, content):
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


@pytest.mark.parametrize("name", ["torch_export", "aot_inductor"])
def test_an_archive_that_inflates_or_leaves_its_folder_is_refused(files, tmp_path, name):
    for entry, content, message in (
        ("m/data/zeros", bytes(2**26 + 1), r"bytes would unpack to [\d,]+; no exported file is packed so"),
        ("m/../../evil.so", b"", r"its entry 'm/../../evil.so' lies outside the archive"),
        ("/evil.so", b"", r"its entry '/evil.so' lies outside the archive"),
    ):
        path = tmp_path / "m.pt2"
        path.write_bytes(files[name].read_bytes())
        compressed(path, entry, content)
        for read in (contents, formats()[name].digest, formats()[name].open_file, formats()[name].read_metadata):
            with pytest.raises(UnreadableFile, match=rf"m.pt2: .*{message}"):
                read(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"location": "/dev/zero"}, "takes weights from '/dev/zero', which is no file beside it"),
        ({"location": "../weights"}, "takes weights from '../weights', which is no file beside it"),
        ({"location": "link"}, "takes weights from 'link', which is no file beside it"),
        ({"location": "gone"}, "takes weights from 'gone', which is no file beside it"),
        ({"location": "."}, "takes weights from '.', which is no file beside it"),
        ({"location": "weights", "offset": "60", "length": "9"}, "takes more from 'weights' than that holds"),
        ({"location": "weights", "length": "-1"}, "takes more from 'weights' than that holds"),
        ({"location": "weights", "length": "64"}, None),
    ],
    ids=str,
)
def test_weights_of_onnx_in_other_files_lie_beside_it(tmp_path, said, message):
    library = pytest.importorskip("onnx", reason="needs the extra onnx")
    helper = library.helper
    (tmp_path / "in").mkdir()
    (tmp_path / "weights").write_bytes(bytes(64))
    (tmp_path / "in" / "weights").write_bytes(bytes(64))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "weights")
    weight = library.TensorProto(name="w", data_type=1, dims=[16], data_location=library.TensorProto.EXTERNAL)
    for key, value in said.items():
        weight.external_data.add(key=key, value=value)
    node = helper.make_node("Add", ["images", "w"], ["output"])
    values = [helper.make_tensor_value_info(name, 1, [16]) for name in ("images", "output")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    path = tmp_path / "in" / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )
    if message is None:
        assert torch.equal(onnx.open_file(path)(torch.ones(16))[0], torch.ones(16))
        return
    with pytest.raises(UnreadableFile, match=rf"m.onnx: {message}"):
        onnx.open_file(path)
