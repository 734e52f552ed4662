"""Segmenters copied, pickled, saved and opened again, with everything that was done to them."""

import copy
import pickle

import pytest
import timm
import torch

import convattn
from convattn.model_files import open_model, read_metadata, save_model
from convattn.weights.errors import CheckpointError, WeightsNote
from segmentation_toys import DENSE, build_segmenter
from toys import build_toy, randomise_norms, toy

pytestmark = pytest.mark.filterwarnings("ignore::convattn.backbones.levels.FormNote")

SWIN = dict(depths=(1,) * 4, embed_dim=24)


def on(backbone, head="semantic_fpn"):
    model = convattn.create_segmenter(backbone, head, 7, width=8)
    randomise_norms(model)
    return model.eval()


SEGMENTERS = {
    "by name": build_segmenter,
    "nano": lambda: build_segmenter("smt_nano", stem_stride=4),
    "next_vit": lambda: build_segmenter("nextvit_small", frozen_stages=2, frozen_norms=True, drop_path_rate=0.1),
    "of a plain form": lambda: on(build_toy("nextvit_small", drop_path_rate=0.2)),
    "cotnet": lambda: build_segmenter("cotnet_50", "semantic_fpn"),
    "groupmixformer with a head": lambda: on(build_toy("groupmixformer_tiny"), "upernet"),
    "hybrid": lambda: build_segmenter("hybrid"),
    "features_only": lambda: on(convattn.create_model("smt_tiny", features_only=True, **toy("smt_tiny").options)),
    "attached before": lambda: on(convattn.attach(build_toy("resnet50_das"), "se", init="paper")),
    "attached after": lambda: convattn.attach(build_segmenter("cotnet_50"), "sam", num_heads=2).eval(),
    "replaced before": lambda: on(convattn.replace(build_toy("resnet50_das"), "cot")),
    "timm's": lambda: build_segmenter("timm:test_efficientnet"),
    "timm's, given": lambda: on(convattn.create_model("timm:test_resnet", num_classes=3)),
    "timm's of any size": lambda: build_segmenter("timm:swin_tiny_patch4_window7_224", **SWIN),
}


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in SEGMENTERS.items()])
def test_a_segmenter_survives_its_file_and_every_copy(build, tmp_path):
    model = build()
    images = torch.randn(2, 3, 64, 96)
    want = model(images)
    assert torch.equal(copy.deepcopy(model)(images), want)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), want)
    save_model(model, tmp_path / "model.safetensors")
    opened = open_model(tmp_path / "model.safetensors")
    assert torch.equal(opened(images), want)
    assert opened.built_as == model.built_as
    assert opened.pretrained_cfg["input_size"] == model.pretrained_cfg["input_size"]
    assert {name for name, p in opened.named_parameters() if not p.requires_grad} == {
        name for name, p in model.named_parameters() if not p.requires_grad
    }
    save_model(opened, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_the_file_says_what_builds_it(tmp_path):
    save_model(build_segmenter("nextvit_small", "upernet", 7), tmp_path / "model.safetensors")
    described = read_metadata(tmp_path / "model.safetensors")
    assert (described["task"], described["name"], described["num_classes"]) == ("segmentation", "upernet", 7)
    stated = dict(backbone="nextvit_small", num_classes=7, width=8, dropout=0.1, frozen_stages=0, frozen_norms=False)
    assert described["options"].items() >= {**stated, **DENSE["nextvit_small"]}.items()


def test_an_opened_segmenter_takes_other_classes_and_is_saved_again(tmp_path):
    save_model(build_segmenter(), tmp_path / "model.safetensors")
    model = open_model(tmp_path / "model.safetensors", num_classes=3)
    assert model(torch.randn(1, 3, 64, 64)).shape[1] == 3
    save_model(model, tmp_path / "other.safetensors")
    assert open_model(tmp_path / "other.safetensors").num_classes == 3


def test_weights_that_it_started_from_are_not_asked_for_again(tmp_path, monkeypatch):
    path = tmp_path / "backbone.pth"
    torch.save(build_toy("smt_tiny").state_dict(), path)
    with pytest.warns(WeightsNote):
        model = build_segmenter(pretrained_path=path)
    path.unlink()
    save_model(model, tmp_path / "model.safetensors")
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    assert torch.equal(
        open_model(tmp_path / "model.safetensors").backbone.stem.conv1.weight, model.backbone.stem.conv1.weight
    )


def test_one_on_a_foreign_backbone_is_copied_and_not_saved(tmp_path):
    model = on(timm.create_model("test_resnet"))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), model(images))
    with pytest.raises(CheckpointError, match="was not built by convattn"):
        save_model(model, tmp_path / "model.safetensors")


def test_a_changed_layer_is_not_passed_over(tmp_path):
    model = build_segmenter()
    model.decode_head.fpn_convs[0].act = torch.nn.GELU()
    with pytest.raises(CheckpointError, match=r"decode_head.fpn_convs.0.act is a GELU, and a ReLU in"):
        save_model(model, tmp_path / "model.safetensors")
