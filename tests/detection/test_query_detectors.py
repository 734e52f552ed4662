"""Sparse R-CNN and DINO as detectors: what they take and give, and what they do where little is to be found."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from convattn.detection.create import create_detector
from convattn.detection.image_batch import batched
from convattn.detection.query_detectors import QueryNote
from tiny_detectors import CROWD, QUERIES, QUERY_IDS, SIZE, WITH, WITHOUT, Trunk, detector, images, target

every_form = pytest.mark.parametrize(("name", "options"), QUERIES, ids=QUERY_IDS)
every_name = pytest.mark.parametrize("name", ["sparse_rcnn", "dino"])


@every_form
@pytest.mark.parametrize("held", [(WITH, WITH), (WITH, WITHOUT), (WITHOUT, WITHOUT), (CROWD, CROWD), (WITH,)])
def test_every_weight_learns_whatever_the_images_hold(name, options, held):
    model = detector(name, **options).train()
    losses = model(images(*[SIZE] * len(held)), list(held))
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_crowds_are_no_objects():
    for name in ("sparse_rcnn", "dino"):
        model, losses = detector(name).eval(), []
        mixed = {part: torch.cat([WITH[part], CROWD[part]]) for part in ("boxes", "labels")}
        for one in (WITH, {**mixed, "iscrowd": torch.tensor([0, 0, 1])}):
            torch.manual_seed(2)
            losses.append(model.losses(images(SIZE), [one]))
        assert all(torch.equal(losses[0][part], losses[1][part]) for part in losses[0])


@every_form
def test_losses_have_names(name, options):
    layers = {f"stage{at}" for at in range(2)}
    if name == "dino":
        layers = {"layer0", "layer1", "encoder", "denoising_layer0", "denoising_layer1"}
    losses = detector(name, **options).losses(images(SIZE), [WITH])
    assert losses.keys() == {f"{layer}.{part}" for layer in layers for part in ("label", "l1", "iou")}


@every_form
def test_what_is_found_is_in_torchvisions_format(name, options):
    model = detector(name, **options).eval()
    sizes = [(61, 90), (33, 40)]
    for found, (height, width) in zip(model(images(*sizes)), sizes, strict=True):
        boxes, count = found["boxes"], len(found["scores"])
        assert 0 < count <= 60 and boxes.shape == (count, 4) and found["labels"].dtype == torch.int64
        assert (found["scores"].diff() <= 0).all() and found["labels"].max() < 3 and found.keys() == {*found}
        if name == "dino":
            assert (boxes >= 0).all() and (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
    model.max_detections = 3
    assert [len(found["scores"]) for found in model(images(*sizes))] == [3, 3]
    middle = model(images(*sizes))[0]["scores"][1].item()
    model.score_threshold = middle
    assert [found["scores"].min().item() > middle for found in model(images(*sizes)) if len(found["scores"])]
    assert not model.has_masks


@every_form
def test_boxes_are_given_in_pixels_of_the_original(name, options):
    model = detector(name, **options).eval()
    nn.init.normal_(model.get_submodule("head.stages.1.mover" if name == "sparse_rcnn" else "head.memory_proj").weight)
    (own,), (twice,) = model(images(SIZE)), model(images(SIZE), original_sizes=[(122, 270)])
    assert torch.equal(own["scores"], twice["scores"]) and len(own["scores"])
    assert torch.allclose(own["boxes"] * torch.tensor([3, 2, 3, 2]), twice["boxes"], rtol=1e-5)


def test_boxes_of_sparse_rcnn_may_reach_beyond_the_image_and_those_of_dino_end_there():
    model = detector("sparse_rcnn").eval()
    nn.init.constant_(model.head.stages[-1].mover.bias, 1.0)
    assert model(images(SIZE))[0]["boxes"][:, 2].max() > SIZE[1]
    for flavour in ("detrex", "mmdet"):
        model = detector("dino", flavour=flavour).eval()
        nn.init.constant_(model.head.box_movers[1][-2].bias, 20.0)  # as large as the image, around its lower right end
        (found,) = model(images(SIZE))
        assert torch.allclose(found["boxes"][:, 2:], torch.tensor([90.0, 61.0]).expand(60, 2))
        nn.init.constant_(model.head.box_movers[1][-2].bias[2:], -1e4)  # of no width and height
        assert len(model(images(SIZE))[0]["boxes"]) == (0 if flavour == "detrex" else 60)


def test_dino_pads_images_to_the_largest_and_masks_that():
    model, seen = detector("dino").eval(), []
    model.head.register_forward_pre_hook(lambda head, given: seen.append(given[1]))
    model(images((61, 90)))
    model(images((61, 90), (33, 40)))
    assert seen[0] is None
    assert seen[1].shape == (2, 61, 90) and not seen[1][0].any()
    assert not seen[1][1, :33, :40].any() and seen[1][1].sum() == 61 * 90 - 33 * 40
    assert batched(images((7, 90)), torch.zeros(1), multiple=1).pixels.shape == (1, 3, 32, 90)


@every_form
@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
def test_half_precision_gives_losses_and_boxes_in_single(name, options, dtype):
    model = detector(name, **options)
    with torch.autocast("cpu", dtype):
        losses = model.train()(images(SIZE, SIZE), [WITH, WITHOUT])
        found = model.eval()(images(SIZE))
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    model.to(dtype)
    losses = model.train()([image.to(dtype) for image in images(SIZE, SIZE)], [WITH, WITHOUT])
    found += model.eval()([image.to(dtype) for image in images(SIZE)])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert {one[part].dtype for one in found for part in ("boxes", "scores")} == {torch.float32}
    assert all(one["boxes"].isfinite().all() for one in found)


@pytest.mark.parametrize(("flavour", "dtype"), [("detrex", torch.float32), ("mmdet", torch.bfloat16)])
def test_everything_that_dino_finds_stays_on_a_gpu(flavour, dtype):
    """Its parameters and images are fake ones on a CUDA device, where nothing is computed."""
    model = detector("dino", flavour=flavour).eval()
    with FakeTensorMode():
        for module in model.modules():
            for own in (module._parameters, module._buffers):
                for key, tensor in own.items():
                    if tensor is not None:
                        kind = dtype if tensor.is_floating_point() else tensor.dtype
                        fake = torch.empty(tensor.shape, device="cuda", dtype=kind)
                        own[key] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
        given = [torch.empty(3, *size, device="cuda", dtype=dtype) for size in ((61, 90), (33, 40))]
        batch = model._batch(given)
        rows = model.surest_of(model.pyramid(batch.pixels), batch.sizes, batch.padding)
    assert {part.device.type for part in (rows.boxes_xyxy, rows.scores, rows.labels)} == {"cuda"}
    assert rows.boxes_xyxy.dtype == rows.scores.dtype == torch.float32


@every_form
def test_costs_of_all_layers_reach_the_cpu_together(name, options, monkeypatch):
    model, moved, cpu = detector(name, **options), [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self, *rest: moved.append(self.shape) or cpu(self, *rest))
    model.losses(images(SIZE, SIZE), [WITH, WITH])
    layers = 2 if name == "sparse_rcnn" else 3
    assert moved == [(layers * 2 * 20 * len(WITH["labels"]),)]


def test_a_network_that_has_overflowed_says_so():
    for name in ("sparse_rcnn", "dino"):
        model = detector(name).train()
        nn.init.constant_(model.backbone.stem[0].weight, float("nan"))
        with pytest.raises(ValueError, match="costs of matching are not finite"):
            model(images(SIZE), [WITH])


# Fewer places than queries, fewer queries than objects


def test_small_images_have_as_many_queries_as_pixels_of_levels_and_it_is_said():
    model = detector("dino", queries=50)
    message = "^images of this size have 22 places for 50 queries to begin at, so 22 are used; take larger images, or"
    small = target((32, 32), (1, 2, 20, 30))
    with pytest.warns(QueryNote, match=message):
        (found,) = model.eval()(images((32, 32)))  # 16 + 4 + 1 + 1
    assert len(found["scores"]) <= 22 * 3
    with pytest.warns(QueryNote, match=message):
        losses = model.train()(images((32, 32), (32, 32)), [small, small])
    assert all(loss.isfinite() for loss in losses.values())


@every_name
def test_objects_beyond_the_queries_are_said(name):
    model = detector(name, **({"queries": 3} if name == "dino" else {"proposals": 3}))
    many = target(SIZE, *[(5, 6, 50, 40)] * 5)
    with pytest.warns(QueryNote, match="^an image has 5 objects and 3 queries look for them: 2 are not learnt$"):
        losses = model.train()(images(SIZE), [many])
    assert all(loss.isfinite() for loss in losses.values())


@every_name
@pytest.mark.parametrize("size", [(1, 800), (800, 1), (1, 1)])
@pytest.mark.filterwarnings("ignore::convattn.detection.query_detectors.QueryNote")
def test_images_of_odd_shapes_are_images(name, size):
    model = detector(name)
    losses = model.train()(images(size, size), [target(size, (0, 0, size[1], size[0]))] * 2)
    sum(losses.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    (found,) = model.eval()(images(size))
    assert found["boxes"].isfinite().all()


def test_queries_that_begin_at_padding_give_no_infinities():
    """A small image in a large batch has fewer pixels of its own than there are queries."""
    model = detector("dino", queries=120).train()
    losses = model(images((20, 20), (128, 128)), [target((20, 20), (1, 2, 15, 15)), WITHOUT])
    sum(losses.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


# By name


@every_form
def test_what_built_one_builds_it_again(name, options):
    with torch.device("meta"):
        model = create_detector("timm:resnet18", name, 2, width=64, layers=2, max_detections=7, **options)
        assert model.built_as["task"] == model.task_kind == "detection" and model.built_as["name"] == name
        settings = dict(model.built_as["options"])
        again = create_detector(settings.pop("backbone"), name, **settings)
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    assert again.built_as == model.built_as
    assert (again.max_detections, again.score_threshold) == (7, 0.0)
    strides = [4, 8, 16, 32] if name == "sparse_rcnn" else [8, 16, 32]
    assert [level["reduction"] for level in model.feature_info] == strides
    assert model.pretrained_cfg["classifier"] == tuple(model.classifier_names)


def test_defaults_are_the_papers_and_those_of_the_small_one_its_own():
    with torch.device("meta"):
        sparse, dino, nano = (create_detector(Trunk(), name) for name in ("sparse_rcnn", "dino", "dino_nano"))
        few = create_detector(Trunk(), "sparse_rcnn", proposals=100)
        wide, narrow = (create_detector(Trunk(), "dino", levels=levels) for levels in (5, 2))
    assert (sparse.max_detections, sparse.head.queries, len(sparse.head.stages)) == (300, 300, 6)
    assert few.max_detections == 100
    assert (dino.max_detections, dino.head.queries, len(dino.head.decoder.layers)) == (300, 900, 6)
    assert (nano.max_detections, nano.head.queries, len(nano.head.encoder.layers)) == (100, 100, 3)
    assert sum(weight.numel() for weight in nano.head.parameters()) < 2.5e6
    assert [len(model.head.level_embedding) for model in (dino, wide, narrow)] == [4, 5, 2]
    assert [level["reduction"] for level in narrow.feature_info] == [32]


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_dino_learns_on_fewer_and_more_levels(levels):
    model = detector("dino", levels=levels, points=2, heads=4, queries=6).train()
    losses = model(images((128, 96)), [target((128, 96), (5, 6, 50, 40))])
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in model.head.parameters())


@every_form
def test_other_classes_are_learnt_by_fresh_layers(name, options):
    model = detector(name, **options).eval()
    before = copy.deepcopy(model.state_dict())
    model.reset_classifier(5)
    assert model.num_classes == 5
    after = model.state_dict()
    changed = {entry.rsplit(".", 1)[0] for entry, weight in after.items() if weight.shape != before[entry].shape}
    assert changed == {*model.classifier_names}
    assert all(torch.equal(after[entry], before[entry]) for entry in before if entry.rsplit(".", 1)[0] not in changed)
    assert torch.allclose(model.get_classifier().bias.sigmoid(), torch.full((5,), 0.01))
    losses = model.train()(images(SIZE), [{**WITH, "labels": torch.tensor([4, 3])}])
    assert all(loss.isfinite() for loss in losses.values())
    assert model.eval()(images(SIZE))[0]["labels"].max() < 5


@every_name
def test_stages_and_norms_of_the_backbone_may_be_frozen(name):
    model = detector(name, frozen_stages=2, frozen_norms=True).train()
    assert not any(weight.requires_grad for weight in model.backbone.stem.parameters())
    assert not any(module.training for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    before = model.backbone.stages[0][1].running_mean.clone()
    sum(model(images(SIZE), [WITH]).values()).backward()
    assert torch.equal(model.backbone.stages[0][1].running_mean, before)
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


@every_form
def test_fresh_detectors_are_unsure(name, options):
    model = detector(name, **options).eval()
    with torch.no_grad():
        losses = model.losses(images(SIZE), [WITH])
    assert max(loss.item() for part, loss in losses.items() if part.endswith("label")) < 5
    assert torch.allclose(model.get_classifier().bias.sigmoid(), torch.full((3,), 0.01))
