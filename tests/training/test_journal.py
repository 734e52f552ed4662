from convattn.training.journal import Journal, read_log


def entry(step, **figures):
    return {"epoch": step // 10, "step": step, **figures}


def test_entries_are_appended_and_read(tmp_path):
    journal = Journal(tmp_path, tensorboard=False)
    journal.write(entry(10, top1=50.0))
    journal.write(entry(20, top1=60.0))
    journal.close()
    assert read_log(tmp_path) == [entry(10, top1=50.0), entry(20, top1=60.0)]


def test_going_on_from_a_step_drops_what_came_behind_it(tmp_path):
    journal = Journal(tmp_path, tensorboard=False)
    for step in (10, 20, 30):
        journal.write(entry(step))
    Journal(tmp_path, step=20, tensorboard=False).write(entry(30, again=1))
    assert read_log(tmp_path) == [entry(10), entry(20), entry(30, again=1)]


def test_a_line_cut_by_a_crash_is_left_out(tmp_path):
    Journal(tmp_path, tensorboard=False).write(entry(10))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"epoch": 2, "st')
    assert read_log(tmp_path) == [entry(10)]


def test_no_log_is_an_empty_one(tmp_path):
    assert read_log(tmp_path) == []


def test_tensorboard_gets_every_figure(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path)
    journal.write(entry(10, top1=50.0))
    journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = events.Scalars("top1")
    assert (scalar.step, scalar.value) == (10, 50.0)
