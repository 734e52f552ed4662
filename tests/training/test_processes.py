"""The environment changes nothing of what is trained."""

import io
import os
import re
import warnings
from contextlib import suppress
from pathlib import Path

import accelerate
import pytest
from rich.console import Console

from convattn.data.dataset import DataWarning
from convattn.training.loop import train
from convattn.training.probe import probe
from convattn.training.processes import _SETTINGS, Processes, without_settings
from convattn.training.run import Run
from tiny_runs import assert_same_run, tiny_config, write_pictures

SET = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "FSDP_VERSION": "2",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
}

# What else Accelerate reads where it sets itself up: who the processes are, and devices that are not supported here.
_OTHERS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"} | {
    *("FORK_LAUNCHED", "PT_HPU_LAZY_MODE", "DEEPSPEED_USE_HPU", "XLA_USE_BF16", "XLA_DOWNCAST_BF16"),
    *("PYTORCH_ENABLE_MPS_FALLBACK", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_settings_of_accelerate_are_not_heeded_and_named(pictures, tmp_path, monkeypatch):
    def run(name):
        console = Console(file=io.StringIO())
        parts = dict(schedule=dict(epochs=1, warmup_epochs=0), loop=dict(accumulation=2, device="cpu"))
        return train(tiny_config(pictures, tmp_path / name, **parts), console=console), console.file.getvalue()

    plain, said = run("plain")
    assert "not heeded" not in said
    for name, value in SET.items():
        monkeypatch.setenv(name, value)
    other, said = run("other")
    assert "not heeded: ACCELERATE_DYNAMO_BACKEND=inductor, ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4, " in said
    assert_same_run(plain, other)
    assert {name: os.environ[name] for name in SET} == SET


def test_a_dry_run_heeds_them_no_more(monkeypatch):
    def look(loop):
        raise LookupError([name for name in os.environ if name.startswith(_SETTINGS)])

    monkeypatch.setattr("convattn.training.probe.Processes", look)
    for name, value in SET.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LookupError, match=r"^\[\]$"):
        probe(tiny_config("digits", Path("run")))


@pytest.mark.parametrize(("is_main", "error"), [(True, DataWarning), (False, ZeroDivisionError)])
def test_the_main_process_alone_warns_of_odd_data(tmp_path, monkeypatch, is_main, error):
    def build(config, processes):
        warnings.warn("odd", DataWarning, stacklevel=2)  # an error here
        raise ZeroDivisionError

    monkeypatch.setattr("convattn.training.run.build_model_and_data", build)
    monkeypatch.setattr(Processes, "is_main", is_main)
    config = tiny_config("digits", tmp_path)
    with pytest.raises(error):
        Run(config, tmp_path, Processes(config.loop))


def test_the_environment_is_as_before_after_an_error(monkeypatch):
    monkeypatch.setenv("FP8_BACKEND", "TE")
    with suppress(ZeroDivisionError), without_settings() as told:
        assert told == ["not heeded: FP8_BACKEND=TE; the configuration alone says what is trained"]
        assert "FP8_BACKEND" not in os.environ
        _ = 1 / 0
    assert os.environ["FP8_BACKEND"] == "TE"


def test_all_that_the_installed_accelerate_reads_is_known():
    folder = Path(accelerate.__file__).parent
    files = ["accelerator.py", "state.py", "parallelism_config.py", "utils/dataclasses.py"]
    text = "".join((folder / file).read_text() for file in files)
    names = set(re.findall(r"""(?:environ(?:\.get)?[(\[]|from_env\()\s*"([A-Z][A-Z0-9_]+)\"""", text))
    names |= set(re.findall(r'prefix = "([A-Z][A-Z0-9_]+)"', text))
    assert len(names) > 20
    assert {name for name in names if not name.startswith(_SETTINGS)} <= _OTHERS
