"""A file format can come from another package."""

import warnings

import pytest
import torch

import convattn
from convattn.deploy.formats import format_of, formats
from convattn.deploy.load import load_exported
from tiny_exports import SIZE, tiny_net
from toys import relative_error

OFFER = """[convattn.runtimes]
{name} = {module}
"""


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Install a package that offers a format."""

    def install(name, module, text):
        place = tmp_path / f"{module}_place"
        info = place / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(OFFER.format(name=name, module=module))
        (place / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(place)
        formats.cache_clear()

    yield install
    formats.cache_clear()


def test_a_format_of_another_package_is_exported_and_opened(offer, tmp_path):
    text = "from convattn.deploy.runtimes.torch_export import *\nSUFFIX = '.other'\nLIBRARIES = ('rich', 'nowhere')"
    offer("other", "other_runtime", text)
    assert "other" in formats() and next(iter(formats())) == "onnx"
    path = tmp_path / "model.other"
    assert format_of(path) == "other"
    report = convattn.export(tiny_net(), path, dynamic="batch")
    assert report.format == "other" and report.versions["rich"] and "nowhere" not in report.versions
    loaded, images = load_exported(path), torch.randn(3, *SIZE)
    assert (loaded.format, loaded.num_classes) == ("other", 3)
    assert relative_error(loaded(images), tiny_net()(images)) < 1e-5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "odd",
            "raise RuntimeError('of another\\ntime')",
            "the format 'odd' of broken_runtime cannot be used: of another time",
        ),
        (
            "odd",
            "SUFFIX = '.odd'",
            "cannot be used: broken_runtime has no LIBRARIES, PRECISIONS, DYNAMIC, form, write, open_",
        ),
        (
            "onnx",
            "",
            "the format 'onnx' of broken_runtime cannot be used: another format has that name; update or remove it",
        ),
    ],
)
def test_one_that_cannot_be_used_is_named_and_the_others_are_there(offer, name, text, message):
    offer(name, "broken_runtime", text)
    with pytest.warns(UserWarning, match=message) as caught:
        found = formats()
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert {"onnx", "openvino", "torch_export", "aot_inductor"} <= found.keys() and "odd" not in found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert formats() is found  # said once


def test_the_formats_that_few_machines_run_come_in_by_the_same_table():
    assert list(formats())[:4] == ["onnx", "torch_export", "aot_inductor", "openvino"]
    assert {"core_ml", "executorch", "tensor_rt"} <= formats().keys()
