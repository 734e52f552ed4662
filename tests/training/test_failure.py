"""An error in one of several processes ends the others at once, though they wait for it."""

import signal

import pytest

from forked_runs import ForkedProgram, meeting_point, ranks

CODE = """
import time
import torch
from convattn.training.failure import EndTogether
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
try:
    with EndTogether(rank, 2):
        if rank == 1:
            raise ValueError("no such image")
        torch.distributed.barrier()  # for which the other one never comes
except ValueError:
    time.sleep(600)  # and its connections stay open
"""


def test_the_others_end_and_say_why():
    store = meeting_point()
    first, second = [ForkedProgram(CODE, **rank) for rank in ranks(2, store.port)]
    done = first.join()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "convattn train: ended, because process 1 failed: no such image"
    second.send_signal(signal.SIGKILL)
    second.join()


MAIN = """
import sys
from convattn.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("--nonsense 1", 2, "convattn train: "),
        (
            "--data {folder}/nothing --output {folder}/run --loop.device cpu",
            1,
            "{folder}/nothing: no such",
        ),
    ],
)
def test_an_error_that_all_meet_is_told_once(tmp_path, words, status, said):
    store = meeting_point()
    words = words.format(folder=tmp_path).split()
    programs = [ForkedProgram(MAIN, "train", *words, **rank) for rank in ranks(2, store.port)]
    ended = [program.join() for program in programs]
    assert [done.returncode for done in ended] == [status] * 2
    (line,) = [line for done in ended for line in done.stderr.splitlines() if line.startswith("convattn")]
    assert said.format(folder=tmp_path) in line
