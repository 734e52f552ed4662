"""`pretrained=True` against a server on this machine: downloaded once, checked, and nothing kept that is not whole."""

import dataclasses
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest
import timm
import torch
from official_files import TOY, official_toy
from timm.models import adapt_input_conv

import convattn
from convattn.backbones import registry
from convattn.weights.errors import CheckpointError, WeightsNote
from convattn.weights.fetch import fetch_official
from convattn.weights.head_rows import imagenet_22k_rows
from convattn.weights.records import OFFICIAL_WEIGHTS, OfficialWeights
from toys import build_toy, toy


@dataclass
class Server:
    """Files by name; `cut` are announced in full and sent by half."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    takes_head: bool = True
    downloads: list[str] = field(default_factory=list)
    port: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("CONVATTN_WEIGHTS", raising=False)
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, with_body: bool) -> None:
            name = self.path.lstrip("/")
            if name not in state.files:
                self.send_error(404)
                return
            content = state.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                state.downloads.append(name)
                self.wfile.write(content[: len(content) // 2] if name in state.cut else content)

        def do_HEAD(self) -> None:
            if state.takes_head:
                self.answer(with_body=False)
            else:
                self.send_error(405)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.port = running.server_address[1]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def record(url: str, **fields) -> OfficialWeights:
    return OfficialWeights(tag="in1k", url=url, source="test", license="MIT", **fields)


# Files


def test_downloads_once_and_then_uses_the_cache(server, tmp_path):
    server.files["weights.pth"] = b"x" * 100_000
    weights = record(server.url("weights.pth"), sha256=hashlib.sha256(b"x" * 100_000).hexdigest())
    for _ in range(2):
        path = fetch_official(weights, tmp_path)
        assert path == tmp_path / "weights.pth"
        assert path.read_bytes() == b"x" * 100_000
    assert server.downloads == ["weights.pth"]


def test_uses_torch_hubs_folder_by_default(server, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    server.files["weights.pth"] = b"content"
    assert fetch_official(record(server.url("weights.pth"))) == tmp_path / "checkpoints" / "weights.pth"


def assert_fails(weights: OfficialWeights, folder, *parts: str) -> None:
    with pytest.raises(CheckpointError) as error:
        fetch_official(weights, folder)
    message = str(error.value)
    assert message.startswith(weights.url) and "\n" not in message
    assert all(part in message for part in parts), message
    assert list(folder.iterdir()) == []


def test_a_cut_connection_keeps_nothing(server, tmp_path):
    server.files["weights.pth"] = b"x" * 100_000
    server.cut.add("weights.pth")
    assert_fails(record(server.url("weights.pth")), tmp_path, "cut after 50000 of 100000 bytes")
    server.cut.clear()
    assert fetch_official(record(server.url("weights.pth")), tmp_path).stat().st_size == 100_000


def test_a_server_that_refuses_to_tell_the_length_still_serves(server, tmp_path):
    server.files["weights.pth"] = b"content"
    server.takes_head = False
    assert fetch_official(record(server.url("weights.pth")), tmp_path).read_bytes() == b"content"


def test_another_digest_keeps_nothing(server, tmp_path):
    server.files["weights.pth"] = b"changed"
    weights = record(server.url("weights.pth"), sha256=hashlib.sha256(b"recorded").hexdigest())
    assert_fails(weights, tmp_path, "invalid hash value")


def test_a_file_that_is_gone(server, tmp_path):
    assert_fails(record(server.url("gone.pth")), tmp_path, "Not Found", "CONVATTN_WEIGHTS", "pretrained_path")


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("CONVATTN_WEIGHTS", raising=False)
    with socket.socket() as probe:  # a port where nobody listens
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert_fails(record(f"http://127.0.0.1:{port}/weights.pth"), tmp_path, "refused", "CONVATTN_WEIGHTS")


def test_a_folder_on_this_machine_comes_first(server, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "weights.pth").write_bytes(b"mine")
    monkeypatch.setenv("CONVATTN_WEIGHTS", str(folder))
    server.files.update({"weights.pth": b"theirs", "other.pth": b"other"})
    assert fetch_official(record(server.url("weights.pth")), tmp_path / "cache") == folder / "weights.pth"
    assert fetch_official(record(server.url("other.pth")), tmp_path / "cache").read_bytes() == b"other"
    assert server.downloads == ["other.pth"]


# Models


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """The toy's records point to this machine's server, with files of random toy weights behind them."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    sources = {}
    records = []
    for weights in OFFICIAL_WEIGHTS[TOY]:
        sources[weights.tag], state = official_toy(num_classes=weights.num_classes)
        path = tmp_path / f"{weights.tag}.pth"
        torch.save({"model": state}, path)
        server.files[path.name] = path.read_bytes()
        records.append(dataclasses.replace(weights, url=server.url(path.name)))
    monkeypatch.setattr(registry, "OFFICIAL_WEIGHTS", {**OFFICIAL_WEIGHTS, TOY: tuple(records)})
    return sources


def test_pretrained_loads_the_default_file(published, server):
    model = convattn.create_model(TOY, pretrained=True, **toy(TOY).options)
    source = published["in22k_ft_in1k"].state_dict()
    assert all(torch.equal(tensor, source[key]) for key, tensor in model.state_dict().items())
    convattn.create_model(TOY, pretrained=True, **toy(TOY).options)
    assert server.downloads == ["in22k_ft_in1k.pth"]


@pytest.mark.parametrize("tag", [weights.tag for weights in OFFICIAL_WEIGHTS[TOY]])
@pytest.mark.parametrize("create", [convattn.create_model, timm.create_model])
def test_a_tag_chooses_the_file(published, server, tag, create):
    model = create(f"{TOY}.{tag}", pretrained=True, **toy(TOY).options)
    assert server.downloads == [f"{tag}.pth"]
    assert torch.equal(model.head.fc.weight, published[tag].head.fc.weight)
    assert model.pretrained_cfg["tag"] == tag


def test_classes_and_channels_are_adapted(published):
    said = r"stem.conv1 adapted from 3 to 1 image channels; head fresh: the file has 1,000 classes, the model 10$"
    with pytest.warns(WeightsNote, match=said) as caught:
        model = convattn.create_model(TOY, pretrained=True, num_classes=10, in_chans=1, **toy(TOY).options)
    assert len(caught) == 1
    source = published["in22k_ft_in1k"]
    assert torch.equal(model.stem.conv1.weight, source.stem.conv1.weight.sum(1, keepdim=True))
    assert model.get_classifier().weight.shape == (10, 24)
    assert torch.equal(model.stages[3].norm.weight, source.stages[3].norm.weight)


def test_more_channels_repeat_the_kernel(published):
    with pytest.warns(WeightsNote, match=r"stem.conv1 adapted from 3 to 4 image channels$"):
        model = convattn.create_model(TOY, pretrained=True, in_chans=4, **toy(TOY).options)
    want = adapt_input_conv(4, published["in22k_ft_in1k"].stem.conv1.weight.detach())
    assert torch.equal(model.stem.conv1.weight, want)


def test_the_22k_file_in_a_model_of_1000_classes(published):
    build = partial(convattn.create_model, f"{TOY}.in22k", pretrained=True, num_classes=1000, **toy(TOY).options)
    head = published["in22k"].head.fc.weight
    with pytest.warns(WeightsNote, match=r"head takes 1,000 of the file's 21,841 outputs$"):
        assert torch.equal(build(head_rows="imagenet-22k").head.fc.weight, head[imagenet_22k_rows()])
    with pytest.warns(WeightsNote, match=r"head fresh: the file has 21,841 classes, the model 1,000; head_rows='imag"):
        fresh = build().head.fc.weight
    assert not (fresh == head[imagenet_22k_rows()]).any()
    with pytest.raises(ValueError, match=r"head_rows needs a file: give smt_large pretrained=True or pretrained_path"):
        convattn.create_model(TOY, head_rows="imagenet-22k", **toy(TOY).options)


def test_features_only_with_the_authors_weights(published):
    with pytest.warns(WeightsNote, match=r"the model ends before head.fc.weight, head.fc.bias, left aside$"):
        features = timm.create_model(
            TOY, pretrained=True, features_only=True, out_indices=(1, 3), **toy(TOY).options
        ).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        source = published["in22k_ft_in1k"]
        levels = source.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(features(images), levels, strict=True))


def test_another_width_is_an_error_with_names_and_shapes(published):
    with pytest.raises(
        CheckpointError, match=r"stages.3.norm.weight is \(24,\) in the file, \(32,\) here|and \d+ more"
    ):
        convattn.create_model(TOY, pretrained=True, **{**toy(TOY).options, "dims": (8, 16, 16, 32)})


def test_pretrained_path_serves_either_kind_of_names(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVATTN_WEIGHTS", str(tmp_path / "nowhere"))
    source, state = official_toy()
    for index, weights in enumerate(({"model": state}, source.state_dict())):
        path = tmp_path / f"{index}.pth"
        torch.save(weights, path)
        model = convattn.create_model(TOY, pretrained_path=str(path), num_classes=7, **toy(TOY).options)
        assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_pretrained_path_to_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.pth: no such file"):
        convattn.create_model(TOY, pretrained_path=str(tmp_path / "absent.pth"), **toy(TOY).options)


def test_a_model_without_published_weights_says_so():
    with pytest.raises(ValueError, match="smt_nano has no published weights"):
        convattn.create_model("smt_nano", pretrained=True)


def test_the_nano_takes_a_file_of_ones_own(tmp_path):
    source = build_toy("smt_nano")
    torch.save(source.state_dict(), tmp_path / "own.pth")
    model = convattn.create_model(
        "smt_nano", pretrained_path=str(tmp_path / "own.pth"), num_classes=7, **toy("smt_nano").options
    )
    assert torch.equal(model.head.fc.weight, source.head.fc.weight)


# Files behind a page for people


def test_a_copy_elsewhere_is_fetched_under_the_files_name(server, tmp_path):
    server.files["model.safetensors"] = b"weights"
    page = record(server.url("view"), file="small_in1k.pth", mirror=server.url("model.safetensors"))
    path = fetch_official(page, tmp_path)
    assert path == tmp_path / "small_in1k.safetensors"
    assert path.read_bytes() == b"weights"
    assert fetch_official(page, tmp_path) == path
    assert server.downloads == ["model.safetensors"]


@pytest.mark.parametrize("name", ["small_in1k.pth", "small_in1k.safetensors"])
def test_a_file_in_the_folder_of_weights_comes_before_its_copy(server, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"by hand")
    monkeypatch.setenv("CONVATTN_WEIGHTS", str(tmp_path))
    page = record(server.url("view"), file="small_in1k.pth", mirror=server.url("model.safetensors"))
    assert fetch_official(page, tmp_path / "cache") == tmp_path / name
    assert server.downloads == []


def test_a_page_without_a_copy_says_what_to_do(server, tmp_path):
    page = record(server.url("view"), file="small_in1k.pth")
    with pytest.raises(
        CheckpointError, match=r"view: not a direct download; fetch small_in1k.pth there by hand and set"
    ):
        fetch_official(page, tmp_path)
    assert list(tmp_path.iterdir()) == [] and server.downloads == []
