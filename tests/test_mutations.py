"""Readers before damaged and hostile files: no crash, no hang, one line with the file's name, little memory.

`benchmarks/mutate.py` tries thousands more.
"""

from pathlib import Path

import pytest

from mutated_inputs import KINDS, try_mutations
from mutations import mutated, mutated_json

# A few of each; those that are slow to write or open have fewer.
FEW = {"model files": 15, "run folders": 12, "run checkpoints": 25, "onnx": 200, "openvino": 200, "torch_export": 10}
SLOW = {"onnx", "openvino"}  # to import and to write
MOST_MEMORY = 150 * 2**20  # bytes that reading any of these files of a few kB may take


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="children are limited and watched as Linux does")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in KINDS]
)
def test_mutated_files_are_read_or_refused_in_one_line(kind, tmp_path):
    if KINDS[kind].is_missing:
        pytest.skip(f"{KINDS[kind].package} is not installed")
    count = FEW.get(kind, 120)
    outcome = try_mutations(kind, range(count), seed=0, folder=tmp_path / "work", keep=tmp_path / "failures")
    assert outcome.failures == []
    assert sum(outcome.counts.values()) == count
    assert outcome.counts["refused"] > count / 4  # else nothing was tried
    assert outcome.peak_bytes < MOST_MEMORY


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="children are limited and watched as Linux does")
@pytest.mark.parametrize(
    ("kind", "seed", "numbers"),
    [
        ("lists", 5, [4680, 7268]),  # pyarrow ended the process
        ("pickled checkpoints", 5, [241, 1270, 3438]),  # names of many lines
    ],
)
def test_what_benchmarks_mutate_has_found_stays_mended(kind, seed, numbers, tmp_path):
    assert try_mutations(kind, numbers, seed, tmp_path / "work").failures == []


def test_an_input_is_a_function_of_seed_kind_and_number(tmp_path):
    import random

    content = bytes(range(256)) * 4
    one, same, other = (mutated(content, [content], random.Random(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert mutated_json(b'{"a": [1, {"b": 2}]}', random.Random(3)) == mutated_json(
        b'{"a": [1, {"b": 2}]}', random.Random(3)
    )
