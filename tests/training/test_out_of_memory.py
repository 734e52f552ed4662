import io
import itertools

import pytest
import torch
from rich.console import Console

from convattn.classification.task import Classification
from convattn.training.config_json import config_to_json
from convattn.training.loop import train
from convattn.training.processes import Processes
from convattn.training.run import Run
from convattn.training.update import OutOfMemory, update
from forked_runs import ForkedProgram
from tiny_runs import newest_checkpoint, tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=18)


def quiet():
    return Console(file=io.StringIO())


def begun(pictures, folder, **parts):
    """A run and the batches of its first update."""
    config = tiny_config(pictures, folder, **parts)
    run = Run(config, folder, Processes(config.loop))
    run.start_epoch()
    return run, list(itertools.islice(run.data.train_loader.batches(0), config.loop.accumulation))


def memory_for(monkeypatch, images, after=0):
    """From the batch `after` on, no more than `images` at once go through."""
    losses, count = Classification.losses, itertools.count(1)

    def limited(self, model, batch):
        if next(count) > after and len(batch) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return losses(self, model, batch)

    monkeypatch.setattr(Classification, "losses", limited)


@pytest.mark.parametrize(
    ("room", "parts", "message"),
    [
        (7, {}, "12 on cpu; 6 fits: --data.batch-size 6 --loop.accumulation 2 makes the same updates"),
        (5, {}, "12 on cpu; 4 fits: --data.batch-size 4 --loop.accumulation 3 makes the same updates"),
        # Mixed images go in pairs, and 3 batches of 12 are 9 of 4.
        (5, dict(task=dict(mixup=0.2), loop=dict(accumulation=3)), "4 fits: --data.batch-size 4 --loop.accumulation 9"),
        (3, {}, "3 fits: --data.batch-size 3 --loop.accumulation 4"),
        (3, dict(task=dict(cutmix=1.0)), "2 fits: --data.batch-size 2 --loop.accumulation 6"),
        (1, {}, "12 on cpu; no smaller one fits: set model.grad_checkpointing, or take a smaller model or image"),
    ],
)
def test_the_error_says_which_batch_fits(pictures, tmp_path, monkeypatch, room, parts, message):
    memory_for(monkeypatch, room)
    run, group = begun(pictures, tmp_path, **{**parts, "data": {"batch_size": 12, **parts.get("data", {})}})
    with pytest.raises(OutOfMemory, match=r"^out of memory with data.batch_size 12 on cpu; ") as error:
        update(run, group)
    assert message in str(error.value)


@pytest.mark.parametrize("after", [0, 4])
def test_the_run_goes_on_with_the_batch_that_fits(pictures, tmp_path, monkeypatch, after):
    with monkeypatch.context() as patch:
        memory_for(patch, 7, after)  # 4 is in the second epoch: three updates each
        with pytest.raises(OutOfMemory, match="6 fits"):
            train(tiny_config(pictures, tmp_path / "run", data=dict(batch_size=12)), console=quiet())
    console = quiet()
    config = tiny_config(pictures, tmp_path / "run", data=dict(batch_size=6), loop=dict(accumulation=2))
    train(config, resume=True, console=console)
    assert "data.batch_size is now 6, was 12: the order of the images stays" in console.file.getvalue()
    assert newest_checkpoint(tmp_path / "run").state["counters"]["step"] == 6


def test_other_errors_are_not_taken_for_it(pictures, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("shape '[2]' is invalid for input of size 3")

    monkeypatch.setattr(Classification, "losses", fail)
    with pytest.raises(RuntimeError, match=r"^shape '\[2\]' is invalid"):
        update(*begun(pictures, tmp_path))


def test_memory_that_the_cpu_really_lacks(pictures, tmp_path):
    # A limit on the address space, lowered once the run is built to what it takes and some more.
    model = dict(name="timm:convnext_atto", options={"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)})
    config = tiny_config(pictures, tmp_path / "run", model=model, data=dict(batch_size=32, image_size=512))
    (tmp_path / "config.json").write_text(config_to_json(config))
    code = f"""
import resource
from pathlib import Path
import torch
from convattn.training.config_json import config_from_json
from convattn.training.processes import Processes
from convattn.training.run import Run
from convattn.training.update import OutOfMemory, update
torch.set_num_threads(1)
torch.backends.mkldnn.set_flags(False)  # oneDNN fails in ways of its own
config = config_from_json(Path({str(tmp_path / "config.json")!r}).read_text())
run = Run(config, Path(config.output.folder), Processes(config.loop))
run.start_epoch()
group = [next(run.data.train_loader.batches(0))]
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 200 * 2**20,) * 2)
try:
    update(run, group)
except OutOfMemory as error:
    print(error)
"""
    done = ForkedProgram(code).join()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out of memory with data.batch_size 32 on cpu; "), done
    assert " fits: --data.batch-size " in done.stdout
