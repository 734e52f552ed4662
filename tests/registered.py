"""Which models a test of all of them runs over."""

import pytest
import torch

import convattn
from toys import family_file, toy

NAMES = convattn.list_models()


def _unlike() -> list[str]:
    """The first of all names whose toys are one network: variants mostly differ in sizes, and a toy has its own."""
    first: dict[str, str] = {}
    with torch.device("meta"):
        for name in NAMES:
            model = convattn.create_model(name, **toy(name).options)
            layers = [model.pretrained_cfg[key] for key in ("first_conv", "classifier")]
            first.setdefault(repr((type(model), model.cfg, layers)), name)
    return list(first.values())


every_model = pytest.mark.parametrize("name", NAMES)
every_toy = pytest.mark.parametrize("name", _unlike())

FIRST = {family_file(name): name for name in reversed(NAMES)}

# Where a test takes seconds, one model a family in the default run and the others with the slow tests.
one_of_each_family = pytest.mark.parametrize(
    "name", [n if n in FIRST.values() else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
