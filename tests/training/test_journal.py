import pytest

from convattn.training.journal import Journal, LogError, read_log
from forked_runs import ForkedProgram


def entry(epoch, **figures):
    return {"epoch": epoch, "step": 10 * epoch, **figures}


def test_entries_are_appended_and_read(tmp_path):
    journal = Journal(tmp_path, tensorboard=False)
    journal.write(entry(1, top1=50.0))
    journal.write(entry(2, top1=60.0))
    journal.close()
    assert read_log(tmp_path) == [entry(1, top1=50.0), entry(2, top1=60.0)]


def test_going_on_behind_an_epoch_drops_what_came_later(tmp_path):
    journal = Journal(tmp_path, tensorboard=False)
    for epoch in (1, 2, 3):
        journal.write(entry(epoch))
    # With larger batches an epoch has fewer updates: the number of the validation is what counts.
    again = {"epoch": 3, "step": 15}
    Journal(tmp_path, validations=2, tensorboard=False).write(again)
    assert read_log(tmp_path) == [entry(1), entry(2), again]


def test_a_line_cut_by_a_crash_is_left_out(tmp_path):
    Journal(tmp_path, tensorboard=False).write(entry(1))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"epoch": 2, "st')
    assert read_log(tmp_path) == [entry(1)]


@pytest.mark.parametrize(
    "line",
    [
        *(b"{}", b"[]", b"epoch 2", b"\xff\xfe", b'{"epoch": null}', b'{"epoch": true}', b'{"epoch": 0}'),
        *(b"[" * 99_999, b'{"epoch": 2, "top1": NaN}', b'{"epoch": ' + b"9" * 5000 + b"}"),
    ],
    ids=range(10),
)
def test_a_line_that_is_no_entry_is_named(tmp_path, line):
    Journal(tmp_path, tensorboard=False).write(entry(1))
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match=r"log.jsonl, line 2: not an entry of a run's log; remove the line"):
        read_log(tmp_path)


@pytest.mark.parametrize("figure", ['"x"', "[1]", "{}", "true", "1e999", "1" + "0" * 400, "-1e300"])
def test_what_is_no_figure_is_named(tmp_path, figure):
    (tmp_path / "log.jsonl").write_text(f'{{"epoch": 1, "val_loss": {figure}}}\n')
    with pytest.raises(LogError, match=r"log.jsonl, line 1: 'val_loss' is no figure; remove the line"):
        read_log(tmp_path)


def test_a_line_without_end_is_named_and_not_read(tmp_path):
    Journal(tmp_path, tensorboard=False).write(entry(1))
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.truncate(2**33)  # of zeros, which take no room on the disk
    with pytest.raises(LogError, match=r"log.jsonl, line 2: too long for an entry"):
        read_log(tmp_path)


def test_a_figure_that_is_not_finite_is_null(tmp_path):
    Journal(tmp_path, tensorboard=False).write(entry(1, train_loss=float("nan")))
    assert read_log(tmp_path) == [entry(1, train_loss=None)]


def test_a_full_disk_leaves_whole_lines_and_names_the_file(tmp_path):
    # A real limit on the size of files, in a process of its own.
    code = f"""
import resource, signal
from pathlib import Path
from convattn.training.journal import Journal
journal = Journal(Path({str(tmp_path)!r}), tensorboard=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for epoch in (1, 2, 3):
    journal.write(dict(epoch=epoch, step=10 * epoch, val_loss=0.25))
"""
    done = ForkedProgram(code).join()
    assert f"{tmp_path / 'log.jsonl'} could not be written: File too large" in done.stderr
    assert [line["epoch"] for line in read_log(tmp_path)] == [1, 2]
    assert (tmp_path / "log.jsonl").read_text().endswith("}\n")


def test_no_log_is_an_empty_one(tmp_path):
    assert read_log(tmp_path) == []


def test_tensorboard_gets_every_figure(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path)
    journal.write(entry(1, top1=50.0))
    journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = events.Scalars("top1")
    assert (scalar.step, scalar.value) == (1, 50.0)
