"""What every test starts from."""

import gc

import pytest
import torch


def pytest_collection_finish() -> None:
    """What has been imported stays to the end: from here on no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all of it goes, as libraries want that watch for what is left."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
