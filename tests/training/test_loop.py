import io
import itertools
import json
import signal

import pytest
import torch
from rich.console import Console

from convattn.classification.scores import Scores
from convattn.data.files import LabelledFiles
from convattn.data.loader import Samples, evaluation_loader
from convattn.data.sources import open_data
from convattn.data.transforms import PictureAlone, transforms_for
from convattn.evaluation import measure
from convattn.model_files import load_model
from convattn.task import Batch
from convattn.training.checkpoint import checkpoint_folders
from convattn.training.config_json import config_from_json, config_to_json
from convattn.training.loop import Interrupted, TrainingError, train
from convattn.training.processes import Processes
from convattn.training.progress import TrainingDisplay
from convattn.training.run import Run
from convattn.training.unreadable import UnreadableError
from convattn.training.update import update
from forked_runs import ForkedProgram, signalled
from tiny_runs import figures, newest_checkpoint, tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def quiet():
    return Console(file=io.StringIO())


def start(config, tmp_path):
    """A run before its first update."""
    run = Run(config, tmp_path, Processes(config.loop))
    run.start_epoch()
    return run


def groups(run):
    """The batches of each update of the first epoch."""
    batches = run.data.train_loader.batches(0)
    while group := list(itertools.islice(batches, run.config.loop.accumulation)):
        yield group


def test_a_run_learns_and_leaves_everything_in_its_folder(pictures, tmp_path):
    config = tiny_config(pictures, tmp_path / "run", schedule=dict(epochs=3), output=dict(tensorboard=True))
    console = quiet()
    folder = train(config, console=console)
    assert (folder / "config.json").read_text() == config_to_json(config)
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(entry["epoch"], entry["step"]) for entry in entries] == [(1, 6), (2, 12), (3, 18)]
    keys = "epoch step train_loss val_loss top1 top5 lr skipped images_per_second memory_gib seconds"
    assert list(entries[0]) == keys.split()
    assert entries[-1]["train_loss"] < entries[0]["train_loss"]
    assert list((folder / "tensorboard").glob("events.*"))
    assert [path.name for path in checkpoint_folders(folder)] == [
        "epoch_00003_image_000000000",
        "epoch_00002_image_000000000",
    ]
    assert not list(folder.rglob("*.writing"))
    model = load_model(folder)
    loader = evaluation_loader(Samples(open_data(pictures, "val"), PictureAlone(transforms_for(model))), 4)
    scores = Scores()
    measure(model, loader, scores)
    found = scores.result(scores.parts())
    assert found["top1"] == max(entry["top1"] for entry in entries) == 100
    assert "epoch 3/3" in console.file.getvalue()


def test_an_update_on_accumulated_batches_is_that_on_one_large_batch(pictures, tmp_path):
    # Batch norm sees other batches, so the network is one without it.
    plain = dict(name="timm:convnext_atto", options={"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)})
    parts = dict(model=plain, optimizer=dict(name="sgd", lr=0.1), schedule=dict(warmup_epochs=0, epochs=1))
    one = start(tiny_config(pictures, tmp_path, data=dict(batch_size=8, image_size=32), **parts), tmp_path)
    two = start(tiny_config(pictures, tmp_path, data=dict(image_size=32), loop=dict(accumulation=2), **parts), tmp_path)
    losses = [update(run, next(groups(run))).loss for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (name, a), b in zip(one.bare_model.state_dict().items(), two.bare_model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    assert (one.updates_per_epoch, two.updates_per_epoch) == (3, 3)


def test_the_last_update_of_an_epoch_takes_what_is_left(pictures, tmp_path):
    run = start(tiny_config(pictures, tmp_path, loop=dict(accumulation=4)), tmp_path)
    assert [len(group) for group in groups(run)] == [4, 2]
    assert run.updates_per_epoch == 2


def test_gradients_are_clipped(pictures, tmp_path):
    def step_length(clip):
        parts = dict(optimizer=dict(name="momentum", lr=1.0, momentum=0.0, weight_decay=0.0, clip_grad=clip))
        run = start(tiny_config(pictures, tmp_path, schedule=dict(warmup_epochs=0), **parts), tmp_path)
        before = [p.detach().clone() for p in run.bare_model.parameters()]
        update(run, next(groups(run)))
        moved = [p.detach() - q for p, q in zip(run.bare_model.parameters(), before, strict=True)]
        return torch.cat([m.flatten() for m in moved]).norm().item()

    assert step_length(None) > 0.1
    assert step_length(0.01) == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_what_is_validated_and_kept(pictures, tmp_path):
    run = start(tiny_config(pictures, tmp_path, loop=dict(ema_decay=0.9)), tmp_path)
    assert run.result_model() is run.ema.module
    folder = train(tiny_config(pictures, tmp_path / "run", loop=dict(ema_decay=0.9)), console=quiet())
    checkpoint = newest_checkpoint(folder)
    kept = load_model(folder / "last.safetensors").state_dict()
    assert all(torch.equal(kept[name], checkpoint.ema[name]) for name in kept)
    assert not all(torch.equal(kept[name], checkpoint.model[name]) for name in kept)


def test_bf16_runs_the_network_in_bf16(pictures, tmp_path):
    run = start(tiny_config(pictures, tmp_path, loop=dict(precision="bf16")), tmp_path)
    seen = []
    run.bare_model.stem.conv2.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    update(run, next(groups(run)))
    assert seen == [torch.bfloat16]
    assert next(run.bare_model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_layout_is_set_for_weights_and_images(pictures, tmp_path, channels_last):
    run = start(tiny_config(pictures, tmp_path, loop=dict(channels_last=channels_last)), tmp_path)
    seen = []
    run.bare_model.stem.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    update(run, next(groups(run)))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is channels_last
    weight = run.bare_model.stages[1].downsample.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_compile_compiles_the_model(pictures, tmp_path):
    run = start(tiny_config(pictures, tmp_path, loop=dict(compile=True)), tmp_path)
    assert run.bare_model._compiled_call_impl is not None
    assert not any("_orig_mod" in name for name in run.bare_model.state_dict())
    assert start(tiny_config(pictures, tmp_path), tmp_path).bare_model._compiled_call_impl is None


def test_the_seed_decides_the_weights(pictures, tmp_path):
    first, again, other = (
        start(tiny_config(pictures, tmp_path, loop=dict(seed=seed)), tmp_path).bare_model.stem.conv1.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_so_many_checkpoints_are_kept(pictures, tmp_path):
    config = tiny_config(pictures, tmp_path / "run", schedule=dict(epochs=4), output=dict(keep_checkpoints=3))
    assert len(checkpoint_folders(train(config, console=quiet()))) == 3


def test_any_model_of_timm_trains(pictures, tmp_path):
    parts = dict(model=dict(name="timm:test_resnet", options={}), schedule=dict(epochs=1, warmup_epochs=0))
    folder = train(tiny_config(pictures, tmp_path / "run", **parts), console=quiet())
    assert load_model(folder).built_as["name"] == "timm:test_resnet"


def test_weights_that_overflow_stop_at_validation(pictures, tmp_path):
    parts = dict(
        schedule=dict(epochs=1, warmup_epochs=0), optimizer=dict(name="sgd", lr=1e30), data=dict(batch_size=24)
    )
    with pytest.raises(TrainingError, match=r"val_loss is nan after step 1; no checkpoint was written yet"):
        train(tiny_config(pictures, tmp_path / "run", **parts), console=quiet())
    assert checkpoint_folders(tmp_path / "run") == []


def test_an_unreadable_image_is_set_aside_and_named_once(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", train=60)
    broken = pictures / "train" / "dark" / "007.png"
    broken.write_bytes(broken.read_bytes()[:100])
    console = quiet()
    config = tiny_config(pictures, tmp_path / "run", data=dict(batch_size=20))
    folder = train(config, console=console)
    lines = (folder / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{broken}: damaged or cut short")
    assert console.file.getvalue().count("set aside: ") == 1


def test_an_unreadable_validation_image_is_named_once_and_so_is_a_class_that_is_lost(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", val=75)
    broken = [pictures / "val" / name / "000.png" for name in ("dark", "grey")]
    for split in ("train", "val"):
        (pictures / split / "grey").mkdir()
    (pictures / "train" / "dark" / "011.png").rename(pictures / "train" / "grey" / "000.png")
    for path in broken:
        path.write_bytes(b"")
    for index in range(50):
        (pictures / "val" / "bright" / f"{index + 75:03d}.png").hardlink_to(pictures / "val" / "bright" / "000.png")
    console = quiet()
    train(tiny_config(pictures, tmp_path / "run"), console=console)
    said = console.file.getvalue()
    before = said.partition("epoch 1/2")[0]
    assert "".join(f"left out of the validation: {path}: the file is empty\n" for path in broken) in before
    assert said.count("left out of the validation: ") == 2
    assert said.count("validation: class 'grey' counts for nothing: none of its images can be read") == 1


def test_too_many_unreadable_validation_images_are_told_before_the_first_update(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures")
    broken = pictures / "val" / "dark" / "001.png"
    broken.write_bytes(b"")
    monkeypatch.setattr("convattn.training.loop.update", None)
    with pytest.raises(
        UnreadableError,
        match=rf"^1 of 8 validation images of {pictures} cannot be read, more than 1%; repair or remove .*: {broken}: ",
    ):
        train(tiny_config(pictures, tmp_path / "run"), console=quiet())


def test_validation_images_that_are_lost_later_leave_the_epoch(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    content = {path: path.read_bytes() for path in (pictures / "val").rglob("*.png")}
    config = tiny_config(pictures, tmp_path / "run")
    with pytest.raises(UnreadableError, match=r"^8 of 8 validation images of .*: the file is empty; .*: the file is"):
        train(config, console=quiet(), on_validation=lambda folder: [path.write_bytes(b"") for path in content])
    for path, whole in content.items():
        path.write_bytes(whole)
    train(config, resume=True, console=quiet())
    assert [entry["epoch"] for entry in figures(tmp_path / "run")] == [1, 2]
    assert newest_checkpoint(tmp_path / "run").state["counters"]["step"] == 12


def test_too_many_unreadable_images_stop_the_run_with_their_list(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    for index in (1, 2):
        (pictures / "train" / "dark" / f"{index:03d}.png").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"[12] of 24 training images cannot be read, more than 1%; .*00[12].png"):
        train(tiny_config(pictures, tmp_path / "run"), console=quiet())


def test_a_batch_of_unreadable_images_alone_is_skipped(tmp_path, pictures):
    run = start(tiny_config(pictures, tmp_path), tmp_path)
    empty = Batch(torch.empty(0), torch.empty(0), [], {})
    before = {name: value.clone() for name, value in run.bare_model.named_parameters()}
    assert update(run, [empty]).images == 0
    assert run.counters.step == 1
    assert all(torch.equal(value, before[name]) for name, value in run.bare_model.named_parameters())


def test_an_unreadable_image_is_tried_once(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures", train=60)
    broken = pictures / "train" / "dark" / "007.png"
    broken.write_bytes(b"")
    tried = []
    read = LabelledFiles.read

    def counting(self, index):
        tried.append(self.paths[index])
        return read(self, index)

    monkeypatch.setattr(LabelledFiles, "read", counting)
    train(tiny_config(pictures, tmp_path / "run", data=dict(batch_size=20)), console=quiet())
    assert tried.count(str(broken)) == 1
    assert tried.count(str(broken.with_name("008.png"))) == 2  # in each epoch


def test_an_image_that_is_repaired_no_longer_counts_once_its_list_is_deleted(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    broken = pictures / "train" / "dark" / "001.png"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    config = tiny_config(pictures, tmp_path / "run")
    listed = tmp_path / "run" / "unreadable.txt"
    with pytest.raises(UnreadableError, match=rf"repair them, delete {listed} and resume, or remove them and start"):
        train(config, console=quiet())
    broken.write_bytes(content)
    listed.unlink()
    train(config, resume=True, console=quiet())
    assert not listed.exists()


def test_the_report_of_an_epoch_finds_its_checkpoint(pictures, tmp_path):
    found = []
    train(
        tiny_config(pictures, tmp_path / "run"),
        console=quiet(),
        on_validation=lambda folder: found.append(
            (len(checkpoint_folders(folder)), (folder / "best.safetensors").is_file())
        ),
    )
    assert found == [(1, True), (2, True)]


def test_of_equal_results_the_last_is_kept_and_none_counts_as_better(pictures, tmp_path, monkeypatch):
    results = iter([50.0, 75.0, 75.0, 60.0])
    monkeypatch.setattr(Scores, "result", lambda *args: {"val_loss": 1.0, "top1": next(results), "top5": 100.0})
    kept = []
    parts = dict(schedule=dict(epochs=6), loop=dict(early_stopping=2))
    console = quiet()
    train(
        tiny_config(pictures, tmp_path / "run", **parts),
        console=console,
        on_validation=lambda folder: kept.append(
            (folder / "best.safetensors").read_bytes() == (folder / "last.safetensors").read_bytes()
        ),
    )
    assert kept == [True, True, True, False]
    assert "no better result in 2 validations: stopped early after epoch 4" in console.file.getvalue()

    # A finished run stays finished.
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.safetensors")}
    console = quiet()
    train(tiny_config(pictures, tmp_path / "run", **parts), resume=True, console=console)
    assert "stopped early after epoch 4" in console.file.getvalue()
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.safetensors")}


def test_a_frozen_backbone_keeps_weights_and_statistics_until_all_learn(pictures, tmp_path):
    run = start(tiny_config(pictures, tmp_path, loop=dict(freeze_epochs=1), schedule=dict(warmup_epochs=0)), tmp_path)
    before = {name: value.clone() for name, value in run.bare_model.state_dict().items()}

    def moved():
        return {name for name, value in run.bare_model.state_dict().items() if not torch.equal(value, before[name])}

    batches = groups(run)
    update(run, next(batches))
    update(run, next(batches))
    assert moved() == {"head.fc.weight", "head.fc.bias"}
    run.counters.epoch = 1
    run.start_epoch()
    update(run, next(batches))
    learnt = moved()
    # The last stage has one position: its softmax is 1 whatever the query.
    still = {name for name, _ in run.bare_model.named_parameters()} - learnt
    assert still <= {f"stages.3.blocks.0.token_mixer.query.{kind}" for kind in ("weight", "bias")}
    assert any(name.endswith("running_mean") for name in learnt)


FREEZING = dict(
    loop=dict(freeze_epochs=1, ema_decay=0.9, early_stopping=2),
    task=dict(class_weights="balanced"),
    model=dict(drop_path_rate=0.2),
)


@pytest.fixture(scope="module")
def freezing(pictures, tmp_path_factory):
    """A run that freezes the backbone in its first epoch, uninterrupted."""
    return train(tiny_config(pictures, tmp_path_factory.mktemp("freezing") / "run", **FREEZING), console=quiet())


# Six updates an epoch, the backbone frozen in the first: within it, at its end, and behind it.
@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_run_that_freezes_resumes_on_either_side(pictures, freezing, tmp_path, monkeypatch, step):
    tell = TrainingDisplay.update

    def stopping(self, counters, **figures):
        tell(self, counters, **figures)
        if counters.step == step:
            signal.raise_signal(signal.SIGINT)

    config = tiny_config(pictures, tmp_path / "stopped", **FREEZING)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingDisplay, "update", stopping)
        with pytest.raises(Interrupted):
            train(config, console=quiet())
    torch.manual_seed(99)
    resumed = train(config, resume=True, console=quiet())
    one, other = newest_checkpoint(freezing), newest_checkpoint(resumed)
    for part in ("model", "ema"):
        weights, again = getattr(one, part), getattr(other, part)
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert one.state["counters"] == other.state["counters"]


def test_a_full_disk_leaves_the_checkpoint_before_whole(pictures, tmp_path):
    folder = train(tiny_config(pictures, tmp_path / "run", schedule=dict(epochs=1, warmup_epochs=0)), console=quiet())
    config = tiny_config(pictures, folder, schedule=dict(epochs=1, warmup_epochs=0))
    (tmp_path / "config.json").write_text(config_to_json(config))
    # A real limit on the size of files, smaller than a checkpoint's weights, in a process of its own.
    code = f"""
import resource, signal
from pathlib import Path
from convattn.training.config_json import config_from_json
from convattn.training.processes import Processes
from convattn.training.run import Run
config = config_from_json(Path({str(tmp_path / "config.json")!r}).read_text())
run = Run(config, Path(config.output.folder), Processes(config.loop))
run.restore(print)
run.counters.updates += 1
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    run.save()
except OSError as error:
    print(error)
"""
    done = ForkedProgram(code).join()
    assert done.returncode == 0, done.stderr
    assert "model.safetensors could not be written: File too large" in done.stdout
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["epoch_00001_image_000000000"]
    assert newest_checkpoint(folder).state["counters"]["step"] == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_that_finishes_later(pictures, tmp_path, number):
    output = tmp_path / "run"
    small = "--data.image-size 16 --data.batch-size 4 --schedule.epochs 6 --output.no-tensorboard --loop.device cpu"
    args = f"--data {pictures} --output {output} {small}".split()
    done = ForkedProgram(signalled("convattn.training.loop:update", 8, number), *args).join()
    assert done.returncode == 128 + number, done.stderr
    assert f"go on with: convattn train --resume {output}" in done.stderr
    assert "Traceback" not in done.stderr
    assert newest_checkpoint(output).state["counters"]["step"] == 8  # in the second epoch
    if number == signal.SIGINT:
        train(config_from_json((output / "config.json").read_text()), resume=True, console=quiet())
        assert newest_checkpoint(output).state["counters"]["step"] == 36
