"""Every field of the configuration that shapes a part reaches that part."""

import math
import shutil
import tarfile

import pytest
import torch
from timm.layers import DropPath

import convattn
import convattn.rooms
from convattn.classification.model import _head_rows, build_classifier
from convattn.classification.options import DistillationConfig
from convattn.data.dataset import DataError
from convattn.model_files import save_model
from convattn.training.build import (
    build_ema,
    build_model_and_data,
    build_optimizer,
    build_schedule,
)
from convattn.training.config import ConfigError, LoopConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from convattn.training.processes import Processes
from convattn.training.run import Run
from convattn.weights.errors import CheckpointError, WeightsNote
from tiny_runs import TINY_OPTIONS, tiny_config, write_pictures
from tiny_segmenters import TINY_OPTIONS as DENSE_OPTIONS
from tiny_segmenters import tiny_segmentation


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def built(pictures, tmp_path):
    def build(**parts):
        config = tiny_config(pictures, tmp_path / "run", **parts)
        data, model = build_model_and_data(config, Processes(config.loop))
        return config, data, model

    return build


def task_of(config, data, model):
    """The task of a run."""
    room = convattn.rooms.room("classification")
    notes = []
    return room.build(config, model, data.train, data.validation, torch.device("cpu"), notes.append)


def optimizer_of(built, **fields):
    config, _, model = built(optimizer=fields)
    return build_optimizer(model, config, num_processes=1)


def rates(built, epochs=10, updates=4, lr=1.0, lr_batch_size=None, **fields):
    """The learning rate before each update of the run."""
    config, _, model = built(
        schedule=dict(epochs=epochs, **fields), optimizer=dict(lr=lr, lr_batch_size=lr_batch_size, name="sgd")
    )
    optimizer = build_optimizer(model, config, num_processes=1)
    schedule = build_schedule(optimizer, config, updates, num_processes=1)
    values = []
    for update in range(epochs * updates + 1):
        values.append(optimizer.param_groups[0]["lr"])
        schedule.step_update(update + 1)
    return values


def test_one_class_is_refused(tmp_path):
    folder = write_pictures(tmp_path / "pictures")
    for split in ("train", "val"):
        shutil.rmtree(folder / split / "dark")
    config = tiny_config(folder, tmp_path / "run")
    with pytest.raises(DataError, match=r"pictures: only one class, 'bright'; there is nothing to tell apart"):
        build_model_and_data(config, Processes(config.loop))


def test_the_model_takes_classes_size_and_names_from_data_and_config(built):
    _, data, model = built(data=dict(image_size=20), task=dict(crop_ratio=0.8))
    assert model.num_classes == 2
    assert model.pretrained_cfg["label_names"] == ("bright", "dark")
    assert model.pretrained_cfg["input_size"] == (3, 20, 20)
    assert model.pretrained_cfg["crop_pct"] == 0.8
    batch = next(data.train_loader.batches(0))
    assert batch.images.shape == (4, 3, 20, 20)
    assert next(iter(data.validation_loader)).images.shape == (4, 3, 20, 20)


def test_images_may_be_wider_than_high(built):
    _, data, model = built(data=dict(image_size=(20, 28)))
    assert model.pretrained_cfg["input_size"] == (3, 20, 28)
    assert data.image_size == (20, 28)
    assert next(data.train_loader.batches(0)).images.shape == (4, 3, 20, 28)
    assert next(iter(data.validation_loader)).images.shape == (4, 3, 20, 28)


def test_model_fields_reach_the_model(built):
    _, _, model = built(model=dict(drop_rate=0.3, drop_path_rate=0.2, grad_checkpointing=True))
    assert model.drop_rate == 0.3
    assert max(m.drop_prob for m in model.modules() if isinstance(m, DropPath)) == pytest.approx(0.2)
    assert all(stage.grad_checkpointing for stage in model.stages)
    assert model.built_as["options"]["dims"] == TINY_OPTIONS["dims"]


def test_a_model_of_timm_is_built_under_its_prefix(built):
    _, _, model = built(model=dict(name="timm:resnet18", options={}))
    assert model.fc.out_features == 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:test_vit", {}),  # 160 alone
        ("timm:test_vit", {"img_size": 48}),
        ("timm:swin_tiny_patch4_window7_224", dict(depths=(1, 1, 1, 1), embed_dim=8, num_heads=(1, 1, 1, 1))),
    ],
)
def test_a_model_of_one_size_names_the_option(built, name, options):
    own = options.get("img_size", 160 if "test_vit" in name else 224)
    with pytest.raises(ConfigError, match=rf"^data.image_size 36: {name} does not take .*: set data.image_size {own}$"):
        built(model=dict(name=name, options=options), data=dict(image_size=36))
    _, data, _ = built(model=dict(name=name, options=options), data=dict(image_size=own))
    assert data.image_size == (own, own)


def test_gradient_checkpointing_that_a_model_lacks_is_an_error_of_one_line(built):
    with pytest.raises(
        ConfigError, match=r"^model.grad_checkpointing: timm:hrnet_w18_small does not offer it; leave it"
    ):
        build_classifier(ModelConfig("timm:hrnet_w18_small", grad_checkpointing=True), 2, (), ())


def test_an_option_that_a_model_does_not_take_is_an_error_of_one_line(built):
    with pytest.raises(ConfigError, match=r"model timm:resnet18 cannot be built: .*'wings'"):
        built(model=dict(name="timm:resnet18", options={"wings": 2}))
    with pytest.raises(ValueError, match=r"unknown option 'dim' of smt_nano; nearest: dims"):
        built(model=dict(options={"dim": 2}))


def test_weights_to_start_from_are_loaded(built, tmp_path):
    _, _, model = built()
    torch.nn.init.constant_(model.stem.conv2.bias, 7.0)
    save_model(model, tmp_path / "start.safetensors")
    _, _, started = built(model=dict(pretrained_path=str(tmp_path / "start.safetensors")))
    assert (started.stem.conv2.bias == 7).all()


def test_a_classifier_starts_as_the_rows_of_a_larger_one(built, tmp_path):
    large = convattn.create_model("smt_nano", num_classes=5, **TINY_OPTIONS)
    torch.nn.init.normal_(large.head.fc.bias)
    large.pretrained_cfg = {**large.pretrained_cfg, "label_names": ["cat", "dark", "dog", "bright", "elk"]}
    save_model(large, tmp_path / "large.safetensors")
    path = str(tmp_path / "large.safetensors")
    with pytest.warns(WeightsNote, match=r"large.safetensors: head takes 2 of the file's 5 outputs$"):
        by_name = built(model=dict(pretrained_path=path))[2]  # of the classes bright and dark
    assert torch.equal(by_name.head.fc.bias, large.head.fc.bias[[3, 1]])
    assert torch.equal(by_name.stem.conv1.weight, large.stem.conv1.weight)

    (tmp_path / "rows.txt").write_text("4\n0\n")
    with pytest.warns(WeightsNote, match=r"head takes 2 of the file's 5 outputs$"):
        by_file = built(model=dict(pretrained_path=path, head_rows=str(tmp_path / "rows.txt")))[2]
    assert torch.equal(by_file.head.fc.weight, large.head.fc.weight[[4, 0]])
    (tmp_path / "rows.txt").write_text("4\n")
    with pytest.raises(ConfigError, match=r"rows.txt: 1 rows for 2 classes; write one a class"):
        built(model=dict(pretrained_path=path, head_rows=str(tmp_path / "rows.txt")))


def test_a_classifier_of_as_many_other_classes_is_not_taken_without_a_word(built, tmp_path):
    other = convattn.create_model("smt_nano", num_classes=2, **TINY_OPTIONS)
    torch.nn.init.normal_(other.head.fc.bias)
    path = str(tmp_path / "other.safetensors")
    save_model(other, path)
    with pytest.warns(WeightsNote, match=r"head taken as it is, 2 outputs: the file does not name its classes$"):
        unnamed = built(model=dict(pretrained_path=path))[2]
    assert torch.equal(unnamed.head.fc.bias, other.head.fc.bias)
    for names in (["cat", "dog"], ["bright", "dog"]):
        other.pretrained_cfg = {**other.pretrained_cfg, "label_names": names}
        save_model(other, path)
        with pytest.warns(WeightsNote, match=r"head fresh: the file's is of other classes$"):
            named = built(model=dict(pretrained_path=path))[2]
        assert not named.head.fc.bias.any()
        assert torch.equal(named.stem.conv1.weight, other.stem.conv1.weight)


def test_that_photographs_are_seen_much_smaller_is_said(built, tmp_path):
    photographs = write_pictures(tmp_path / "photographs", train=4, val=2, size=70)
    (photographs / "val" / "bright" / "000.png").write_bytes(b"")
    (line,) = built(data=dict(source=str(photographs)))[1].remarks()
    assert line.startswith("images of about 70 x 70 pixels are seen at 16 x 16 (data.image_size)")
    assert built()[1].remarks() == []


def test_a_class_that_the_large_set_lacks_starts_as_the_authors_have_it():
    config = ModelConfig("smt_nano", pretrained_path="22k.safetensors")
    names = ["n01440764", "n03013580", "n02084071"]
    assert _head_rows(config, 2, ["n04399382", "n01440764"], names) == [1, 0]
    assert _head_rows(config, 2, ["n04399382", "cat"], names) == "fresh"
    assert _head_rows(config, 2, ["n01440764", "n03013580"], [*names, "n01440764"]) == "fresh"  # one name twice


def test_validation_images_may_lie_elsewhere(built, tmp_path):
    other = write_pictures(tmp_path / "other", val=3)
    _, data, _ = built(data=dict(validation=str(other / "val")))
    assert len(data.validation) == 6
    assert all(path.startswith(str(other)) for path in data.validation.paths)


def test_unlabelled_images_join_those_with_labels(built, pictures):
    teacher = dict(teacher="smt_nano", unlabelled=str(pictures / "val"))
    config, data, model = built(task=dict(distillation=DistillationConfig(**teacher)))
    with pytest.raises(CheckpointError):  # the weights of a nano model are nowhere
        task_of(config, data, model)
    assert data.train_loader.images == 24 + 8
    assert list(data.train.labels[-8:]) == [-1] * 8


def test_a_teacher_of_another_order_is_matched_in_a_run_that_says_so(built, pictures, tmp_path):
    teacher = convattn.create_model("smt_nano", num_classes=2, **TINY_OPTIONS)
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "label_names": ("dark", "bright"), "input_size": (3, 16, 16)}
    path = tmp_path / "teacher.safetensors"
    save_model(teacher, path)
    config, _, _ = built(task=dict(distillation=DistillationConfig(teacher=str(path))))
    run = Run(config, tmp_path / "run", Processes(config.loop))
    (note,) = run.notes
    assert note.startswith(f"teacher {path}: its classes stand in another order")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(run.task.teacher(images), teacher.eval()(images).flip(1))


def test_shards_behind_a_pipe_train_beside_images_to_validate_on(built, pictures, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for index in range(8):
            tar.add(pictures / "train" / "dark" / f"{index:03d}.png", f"{index}.png")
            (tmp_path / "label").write_text("1")
            tar.add(tmp_path / "label", f"{index}.cls")
    pipe = dict(source=f"pipe:cat {tmp_path}/shard.tar", validation=str(pictures / "val"), epoch_images=8)
    _, data, model = built(data=pipe)
    assert model.num_classes == 2
    assert [batch.targets.tolist() for batch in data.train_loader.batches(0)] == [[1] * 4] * 2
    with pytest.raises(DataError, match=r"name others with data.validation"):
        built(data={**pipe, "validation": None})
    with pytest.raises(DataError, match=r"set data.epoch_images"):
        built(data={**pipe, "epoch_images": None})
    with pytest.raises(DataError, match=r"data.epoch_images has no effect"):
        built(data=dict(epoch_images=8))


def test_fewer_images_than_a_batch_is_an_error(built):
    with pytest.raises(DataError, match=r"24 training images do not fill a batch of 64; lower data.batch_size to 24"):
        built(data=dict(batch_size=64))


def test_workers_and_batch_size_reach_the_loaders(built):
    _, data, _ = built(data=dict(workers=2, batch_size=6))
    batches = list(data.train_loader.batches(0))
    assert [len(batch) for batch in batches] == [6] * 4
    assert len(data.train_loader) == 4
    assert data.train_loader._loader.num_workers == data.validation_loader.num_workers == 2


def test_the_seed_orders_and_varies_the_images(built):
    first, second = (next(built(loop=dict(seed=seed))[1].train_loader.batches(0)) for seed in (0, 1))
    assert first.paths != second.paths


def test_the_task_takes_its_fields(built):
    config, data, model = built(
        task=dict(
            mixup=0.2,
            cutmix=1.0,
            mix_probability=0.7,
            cutmix_probability=0.4,
            mix_epochs=3,
            label_smoothing=0.1,
        ),
    )
    task = task_of(config, data, model)
    mixing = task.mixing
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.mix_prob, mixing.switch_prob) == (0.2, 1.0, 0.7, 0.4)
    assert (task.options.mix_epochs, task.options.label_smoothing) == (3, 0.1)


def test_optimizer_fields_reach_the_optimizer(built):
    optimizer = optimizer_of(built, lr=0.5, weight_decay=0.3, betas=(0.7, 0.8), eps=1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {0.0, 0.3}
    for group in optimizer.param_groups:
        assert (group["lr"], tuple(group["betas"]), group["eps"]) == (0.5, (0.7, 0.8), 1e-3)
        assert (group["weight_decay"] == 0) == all(p.ndim <= 1 for p in group["params"])
    sgd = optimizer_of(built, name="sgd", momentum=0.3)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.3


def decayed(model, optimizer):
    inside = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in inside}


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_what_decays_can_be_chosen(built, layer_decay):
    config, _, model = built(optimizer=dict(no_decay=("stem.*", "*.fc1.weight"), layer_decay=layer_decay))
    found = decayed(model, build_optimizer(model, config, num_processes=1))
    assert not any(name.startswith("stem.") or name.endswith("fc1.weight") for name in found)
    assert any(name.endswith("fc2.weight") for name in found)
    config, _, model = built(optimizer=dict(decay_all=True, layer_decay=layer_decay))
    assert decayed(model, build_optimizer(model, config, num_processes=1)) == {n for n, _ in model.named_parameters()}


def test_everything_decays_but_what_is_named(built):
    config, _, model = built(optimizer=dict(decay_all=True, no_decay=("*norm*",)))
    found = decayed(model, build_optimizer(model, config, num_processes=1))
    assert found == {name for name, _ in model.named_parameters() if "norm" not in name}
    assert any(name.endswith(".bias") for name in found)


def test_a_pattern_that_matches_nothing_is_refused(built):
    with pytest.raises(ConfigError, match=r"optimizer.no_decay 'nothing\*' matches no parameter of "):
        optimizer_of(built, no_decay=("nothing*",))


def test_layer_decay_lowers_the_rate_of_early_layers(built):
    optimizer = optimizer_of(built, layer_decay=0.5)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert max(scales) == 1.0
    assert min(scales) < 0.1


def test_a_backbone_learns_at_a_rate_of_its_own(built, tmp_path):
    config = tiny_segmentation(tmp_path, tmp_path / "run", optimizer=dict(lr=0.1, backbone_lr=0.1))
    model = convattn.create_segmenter("smt_nano", "semantic_fpn", 3, width=16, **DENSE_OPTIONS)
    optimizer = build_optimizer(model, config, num_processes=1)
    schedule = build_schedule(optimizer, config, 3, num_processes=1)
    schedule.step_update(0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: rates[id(p)] for name, p in model.named_parameters()}
    for name, rate in names.items():
        assert rate == pytest.approx(0.01 if name.startswith("backbone.") else 0.1), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}
    with pytest.raises(ConfigError, match=r"optimizer.backbone_lr 0.1 has no effect on a model without a backbone"):
        optimizer_of(built, backbone_lr=0.1)
    with pytest.raises(ConfigError, match=r"both set the learning rate of layers: give one"):
        OptimizerConfig(backbone_lr=0.1, layer_decay=0.7)


def test_learning_rates_scale_with_the_images_of_an_update(built):
    # 4 images a batch, 8 batches an update, for 16 images: twice the rate
    config, _, model = built(
        optimizer=dict(lr=0.1, lr_batch_size=16), loop=dict(accumulation=8), schedule=dict(warmup_lr=0.01, min_lr=0.02)
    )
    optimizer = build_optimizer(model, config, num_processes=1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    schedule = build_schedule(optimizer, config, 3, num_processes=1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    schedule.step_update(6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.04)
    assert build_optimizer(model, config, num_processes=4).param_groups[0]["lr"] == pytest.approx(0.8)


def test_cosine_behind_a_warm_up_spans_the_rest(built):
    values = rates(built, warmup_epochs=2, warmup_lr=0.2, min_lr=0.1)
    assert values[0] == pytest.approx(0.2)
    assert values[4] == pytest.approx(0.6)
    assert values[8] == pytest.approx(1.0)
    assert values[24] == pytest.approx(0.1 + 0.9 / 2)  # half of the 32 updates behind the warm-up
    assert values[40] == pytest.approx(0.1)


def test_a_warm_up_may_cover_the_start_of_the_cosine_instead(built):
    values = rates(built, warmup_epochs=2, warmup_prefix=False)
    assert values[20] == pytest.approx(0.5)
    assert values[8] == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 40)))


def test_a_warm_up_may_end_within_an_epoch(built):
    values = rates(built, warmup_epochs=0.5, warmup_lr=0.0)
    assert values[:3] == pytest.approx([0.0, 0.5, 1.0])


def test_a_warm_up_may_be_counted_in_updates(built):
    assert rates(built, warmup_epochs=0, warmup_updates=4, warmup_lr=0.0)[:5] == pytest.approx(
        [0.0, 0.25, 0.5, 0.75, 1.0]
    )


def test_a_warm_up_longer_than_the_run_is_refused(built):
    with pytest.raises(
        ConfigError, match=r"a warm-up of 40 updates must be below the 40 updates of the run; set schedule"
    ):
        rates(built, warmup_epochs=0, warmup_updates=40)


def test_milestones_are_epochs_after_which_the_rate_falls(built):
    values = rates(built, name="multistep", milestones=(3, 6), decay_rate=0.5, warmup_epochs=1, warmup_lr=0.2)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert (values[11], values[12], values[23], values[24], values[40]) == (1.0, 0.5, 0.5, 0.25, 0.25)
    assert rates(built, name="multistep", milestones=(3,), warmup_epochs=0)[12] == pytest.approx(0.1)


def test_the_rate_may_stay_the_same_within_an_epoch(built):
    values = rates(built, per_epoch=True, warmup_epochs=0)
    assert values[:8] == pytest.approx([1.0] * 4 + [0.5 * (1 + math.cos(math.pi / 10))] * 4)


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [("cosine", 0.5, 0.0), ("poly", 0.5, 0.0), ("tanh", None, None), ("constant", 1.0, 1.0)],
)
def test_the_shape_of_the_schedule(built, name, middle, end):
    values = rates(built, name=name, warmup_epochs=0)
    assert values[0] == pytest.approx(1.0, abs=0.01)
    if name == "tanh":
        assert values == sorted(values, reverse=True)
        assert values[20] > 0.9  # stays up longer than the others
    else:
        assert (values[20], values[40]) == (pytest.approx(middle), pytest.approx(end))


def test_the_average_follows_weights_and_statistics(built):
    _, _, model = built()
    ema = build_ema(model, LoopConfig(ema_decay=0.5, ema_warmup=False))
    norm, averaged = model.stem.norm1, ema.module.stem.norm1
    before = averaged.weight.clone()
    torch.nn.init.constant_(norm.weight, 3.0)
    norm.running_mean.fill_(4.0)
    ema.update(model, 100)
    assert torch.allclose(averaged.weight, 0.5 * before + 1.5)
    assert torch.allclose(averaged.running_mean, torch.tensor(2.0))
    assert build_ema(model, LoopConfig()) is None


def test_the_decay_of_the_average_grows_with_a_warm_up(built):
    _, _, model = built()
    warm = build_ema(model, LoopConfig(ema_decay=0.99))
    assert warm.get_decay(3) < warm.get_decay(30) < 0.95
    assert build_ema(model, LoopConfig(ema_decay=0.99, ema_warmup=False)).get_decay(3) == 0.99


@pytest.mark.parametrize(("precision", "mixed"), [("fp32", "no"), ("bf16", "bf16")])
def test_precision_reaches_the_accelerator_run_after_run(precision, mixed):
    accelerator = Processes(LoopConfig(precision=precision, device="cpu")).accelerator
    assert accelerator.mixed_precision == mixed
    assert accelerator.device.type == "cpu"


def test_fp16_without_a_gpu_says_what_to_use():
    with pytest.raises(ConfigError, match=r"loop.precision fp16 needs a GPU; use bf16 or fp32"):
        Processes(LoopConfig(precision="fp16", device="cpu"))


def test_sharding_needs_several_processes():
    with pytest.raises(ConfigError, match=r"loop.sharding fsdp needs several processes; start them with torchrun"):
        Processes(LoopConfig(sharding="fsdp", device="cpu"))


@pytest.mark.parametrize(
    ("lr", "power", "min_lr", "warmup", "updates", "logged"),
    [
        # Update, from 0, and rate in the authors' logs of Next-ViT's UperNet on ADE20K.
        (6e-5, 1.0, 0.0, 1500, 160_000, {49: 1.959e-6, 1499: 5.940e-5, 1549: 5.942e-5, 159_999: 3.750e-10}),
        (1e-4, 0.9, 1e-6, 0, 40_000, {0: 1e-4, 20_000: 1e-6 + 99e-6 * 0.5**0.9, 39_999: 1e-6 + 99e-6 * 4e4**-0.9}),
    ],
)
def test_a_warm_up_that_multiplies_a_polynomial(built, lr, power, min_lr, warmup, updates, logged):
    schedule = dict(name="poly", power=power, min_lr=min_lr, updates=updates, warmup_epochs=0)
    if warmup:
        schedule |= dict(warmup_updates=warmup, warmup_factor=1e-6)
    config, _, model = built(optimizer=dict(lr=lr, lr_batch_size=None), schedule=schedule)
    optimizer = build_optimizer(model, config, num_processes=1)
    made = build_schedule(optimizer, config, 1000, num_processes=1)
    for at, rate in logged.items():
        made.step_update(at)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=3e-4)  # four digits are logged
        exact = (lr - min_lr) * (1 - at / updates) ** power + min_lr
        exact *= 1 - (1 - at / warmup) * (1 - 1e-6) if at < warmup else 1
        assert optimizer.param_groups[0]["lr"] == pytest.approx(exact, rel=1e-12)


def test_a_schedule_of_one_update_is_quiet(built):
    config, _, model = built(schedule=dict(epochs=1, warmup_epochs=0))
    optimizer = build_optimizer(model, config, num_processes=1)
    build_schedule(optimizer, config, 1, num_processes=1)
    assert ScheduleConfig(epochs=1).warmup_epochs == 0
