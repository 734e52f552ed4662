"""What every test starts from."""

import gc
import random

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("the same every time", derandomize=True, deadline=None)  # however busy the machine is
settings.load_profile("the same every time")


def pytest_collection_finish() -> None:
    """What has been imported stays to the end: from here on no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all of it goes, as libraries want that watch for what is left."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a fixture of a module or session draws does not depend on the tests before it."""
    _seed_all()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """What a test draws does not depend on whether it is the first to need such a fixture."""
    _seed_all()


def _seed_all() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
