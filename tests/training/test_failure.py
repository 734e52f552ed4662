"""An error in one of several processes ends the others at once, though they wait for it."""

import signal

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
