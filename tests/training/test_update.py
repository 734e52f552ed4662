"""One update: how often the device is waited for, what moves, and what a process without images adds."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convattn.task import Batch
from convattn.training.config import ConfigError
from convattn.training.config_json import config_to_json
from convattn.training.processes import Processes
from convattn.training.run import Run
from convattn.training.update import update
from forked_runs import ForkedProgram, meeting_point, ranks
from tiny_runs import tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def start(config, folder):
    """A run before its first update, and its batches."""
    run = Run(config, folder, Processes(config.loop))
    run.start_epoch()
    return run, run.data.train_loader.batches(0)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: a tensor's value asked for by item, float, bool, int or an index."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("parts", [{}, dict(task=dict(mixup=0.5, cutmix=1.0), loop=dict(accumulation=2))])
def test_the_device_is_waited_for_once_an_update(pictures, tmp_path, monkeypatch, parts):
    loop = {"ema_decay": 0.9, **parts.get("loop", {})}
    optimizer = dict(name="sgd", lr=0.1, clip_grad=1.0)  # Adam keeps its counts on the CPU, where nobody waits
    config = tiny_config(pictures, tmp_path, **{**parts, "loop": loop}, optimizer=optimizer)
    run, batches = start(config, tmp_path)
    update(run, list(itertools.islice(batches, loop.get("accumulation", 1))))
    group = list(itertools.islice(batches, loop.get("accumulation", 1)))
    lists = []
    for name in ("tolist", "cpu", "numpy"):
        whole = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *args, whole=whole, name=name: lists.append(name) or whole(self, *args)
        )
    with Waits() as waits:
        done = update(run, group)
    assert (waits.count, lists) == (0, ["tolist"])
    assert math.isfinite(done.loss) and not done.skipped


def test_statistics_alone_are_kept_for_a_skip(pictures, tmp_path):
    run, _ = start(tiny_config(pictures, tmp_path), tmp_path)
    run.bare_model.register_buffer("table", torch.ones(1000))
    kept = {value.numel() for group in run.statistics._kept for value in group}
    assert 1000 not in kept
    names = [name for name, _ in run.bare_model.named_buffers() if name != "table"]
    assert sum(map(len, run.statistics._kept)) == len(names) > 0


def test_the_moving_average_is_that_of_its_formula(pictures, tmp_path):
    # With the warm-up the decay of update n, from 1, is 1 - n^(-2/3), at most 0.9: the first takes the weights whole.
    run, batches = start(tiny_config(pictures, tmp_path, loop=dict(ema_decay=0.9)), tmp_path)
    live, averaged = run.bare_model.stem.conv2.bias, run.ema.module.stem.conv2.bias
    expected = torch.zeros_like(live)
    for decay in (0.0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3)):
        update(run, [next(batches)])
        expected = decay * expected + (1 - decay) * live.detach()
        assert torch.allclose(averaged, expected, rtol=1e-5, atol=1e-8)
    run.counters.step = 10**6
    update(run, [next(batches)])
    assert torch.allclose(averaged, 0.9 * expected + 0.1 * live, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_gradient_checkpointing_changes_nothing(pictures, tmp_path, ema_decay):
    states = []
    for saving in (False, True):
        parts = dict(model=dict(grad_checkpointing=saving, drop_path_rate=0.2), loop=dict(ema_decay=ema_decay))
        run, batches = start(tiny_config(pictures, tmp_path, **parts), tmp_path)
        for batch in itertools.islice(batches, 2):
            update(run, [batch])
        states.append((run.bare_model if ema_decay is None else run.ema.module).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(("name", "size"), [("timm:test_resnet", 16), ("cotnet_nano", 16)])
def test_a_batch_of_one_names_the_option(tmp_path, pictures, name, size):
    model = dict(name=name, options={})
    run, batches = start(
        tiny_config(pictures, tmp_path, model=model, data=dict(batch_size=1, image_size=size)), tmp_path
    )
    with pytest.raises(
        ConfigError, match=rf"^data.batch_size 1: a batch norm of {name} .*; set data.batch_size to 2 or"
    ):
        update(run, [next(batches)])


def test_another_error_of_value_stays_what_it_is(tmp_path, pictures):
    run, batches = start(tiny_config(pictures, tmp_path), tmp_path)
    batch = next(batches)
    with pytest.raises(ValueError, match=r"^input has 1 channels, this model takes 3"):
        update(run, [replace(batch, images=batch.images[:, :1])])


# Two processes, of which one has no readable image: what its norms measure.
EMPTY = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from convattn.task import Batch
from convattn.training.config_json import config_from_json
from convattn.training.processes import Processes
from convattn.training.run import Run
from convattn.training.update import update
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
config = config_from_json((folder / "config.json").read_text())
found, batch = {}, torch.load(folder / "batch.pt", weights_only=False)
none = Batch(torch.empty(0), torch.empty(0), [])
for name, synchronised, groups in (
    ("other empty", False, ([batch], [none])),
    ("main empty", False, ([none], [batch])),
    ("main empty, synchronised", True, ([none], [batch])),
    ("in turn", True, ([batch, none], [none, batch])),
):
    config = replace(config, loop=replace(config.loop, sync_batch_norm=synchronised))
    run = Run(config, folder, Processes(config.loop))
    run.start_epoch()
    for _ in range(1 if name == "in turn" else 2):
        update(run, groups[rank])
    found[name] = dict(run.bare_model.named_buffers())
torch.save(found, folder / f"{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_a_process_without_readable_images_measures_nothing(pictures, tmp_path):
    parts = dict(optimizer=dict(name="sgd", lr=1e-30, lr_batch_size=None), schedule=dict(warmup_epochs=0))
    config = tiny_config(pictures, tmp_path, model=dict(grad_checkpointing=True), **parts)
    run, batches = start(config, tmp_path)
    batch: Batch = next(batches)
    at_first = {name: value.clone() for name, value in run.bare_model.named_buffers()}
    for _ in range(2):
        update(run, [batch])
    alone = dict(run.bare_model.named_buffers())
    torch.save(batch, tmp_path / "batch.pt")
    (tmp_path / "config.json").write_text(config_to_json(config))
    store = meeting_point()
    processes = [ForkedProgram(EMPTY, tmp_path, rank, **words) for rank, words in enumerate(ranks(2, store.port))]
    for process in processes:
        done = process.join()
        assert done.returncode == 0, done.stderr
    main, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, value in alone.items():
        assert torch.equal(main["other empty"][name], value), name
        assert torch.equal(main["main empty"][name], at_first[name]), name
        # Two passes in any case: in turn, none may meet the other's second with its first.
        for synchronised in [
            found[case] for found in (main, other) for case in ("main empty, synchronised", "in turn")
        ]:
            torch.testing.assert_close(synchronised[name], value, rtol=1e-4, atol=1e-6, msg=name)
