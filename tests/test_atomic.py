import subprocess
import sys

import pytest

from convattn.atomic import write_atomically, write_folder_atomically

# A real limit on the size of files, in a process of its own: writing more fails as on a full disk.
LIMITED = """
import resource, signal, sys
from convattn.atomic import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(sys.argv[1], bytes(2000))
except OSError as error:
    print(error)
"""


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "deeper" / "a.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_on_a_full_disk_the_old_file_survives_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert f"{path} could not be written: File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "step"
    write_folder_atomically(target, lambda folder: write_atomically(folder / "a", b"1"))
    assert (target / "a").read_bytes() == b"1"

    def fail(folder):
        write_atomically(folder / "a", b"2")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_folder_atomically(target, fail)
    assert (target / "a").read_bytes() == b"1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["step"]
