import io

from rich.console import Console

from convattn.training.progress import Estimate, TrainingDisplay
from convattn.training.run import Counters

ENTRY = {"epoch": 2, "step": 8, "train_loss": 0.5, "val_loss": 0.25, "top1": 97.5, "lr": 0.1}
SPEED = {"images_per_second": 1234.5, "seconds": 62.0, "memory_gib": 1.25, "skipped": 0}


def test_without_a_terminal_there_is_one_line_an_epoch():
    console = Console(file=io.StringIO(), width=40)
    with TrainingDisplay(12, 3, console) as display:
        for step in range(1, 5):
            display.update(Counters(epoch=0, step=step), loss=1.0, lr=0.1, images_per_second=100.0, memory=0)
        display.validating(3, 10)
        display.validated(ENTRY | SPEED, ["val_loss", "top1"], 4)
        display.validated(ENTRY | SPEED | {"epoch": 3, "step": 12, "skipped": 4}, ["val_loss", "top1"], 4)
    first, last = console.file.getvalue().splitlines()
    figures = "loss 0.5 · val_loss 0.25 · top1 97.5 · lr 1.0e-01 · 1,234 images/s · 1.2 GiB"
    assert first == f"epoch 2/3 · {figures} · 62.0 s, 0:01:02 left"
    assert last == f"epoch 3/3 · {figures} · 62.0 s, 0:00:00 left · 4 updates skipped"


def test_on_a_terminal_the_bar_tells_loss_rate_and_speed():
    console = Console(file=io.StringIO(), width=150, force_terminal=True)
    with TrainingDisplay(12, 3, console) as display:
        display.update(Counters(epoch=1, step=6), loss=1.25, lr=0.002, images_per_second=100.0, memory=3 * 2**29)
    shown = console.file.getvalue()
    for text in ("epoch 2/3", "6/12", "loss 1.250", "lr 2.0e-03", "100 images/s", "1.5 GiB"):
        assert text in shown


def test_the_time_left_of_a_run_that_goes_on_counts_its_own_updates_alone(monkeypatch):
    console = Console(file=io.StringIO(), width=150, force_terminal=True)
    display = TrainingDisplay(1000, 10, console)
    clock = 0.0
    monkeypatch.setattr(display._progress, "get_time", lambda: clock)
    display._progress.tasks[0]._get_time = lambda: clock
    display.start(900)
    for step in range(901, 911):  # 40 seconds each
        clock += 40.0
        display.update(Counters(epoch=9, step=step), loss=1.0, lr=0.1, images_per_second=1.0, memory=0)
    assert display._progress.tasks[0].time_remaining == 90 * 40


def test_the_time_of_a_run_is_told_after_a_few_updates_and_again_when_all_layers_learn():
    clock, told = 0.0, []
    estimate = Estimate(1000, told.append, clock=lambda: clock)
    for step in range(1, 21):
        if step in (1, 11):
            clock += 500.0  # a validation
            estimate.start()
        clock += 60.0 if step == 1 else 2.0 if step <= 10 else 8.0
        estimate.update(step, frozen=step <= 10)
    assert told == [
        "about 0:33:08 for the 994 updates left, validation not counted; more, since the head alone learns as yet",
        "about 2:11:20 for the 985 updates left, validation not counted",
    ]  # of slow updates fewer: 32 seconds are enough
