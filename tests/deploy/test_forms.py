"""What holds for every form of a model that somebody may run, whatever made it."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import convattn
from convattn.deploy.graph_form import graph_form
from in_threads import worst_in_threads
from toys import build_toy, lively, relative_error, toy_images

NAMES = ["cotnet_nano", "groupmixformer_nano", "hybrid", "nextvit_nano", "resnet18_das_cifar", "smt_nano"]

FORMS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "plain": lambda model, images: model,
    "fused": lambda model, images: convattn.fuse(model),
    "graph": lambda model, images: graph_form(convattn.fuse(model)),
    "prepacked": lambda model, images: convattn.prepack(convattn.fuse(model), images),
    "attached": lambda model, images: convattn.attach(model, "das", init="identity"),
}


@cache
def form_of(name: str, form: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The form of a toy, images, and what the toy itself gives for them."""
    torch.manual_seed(0)
    model, images = lively(build_toy(name)).eval(), toy_images(name, batch=4)
    with torch.inference_mode():
        return FORMS[form](model, images).eval(), images, model(images)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_runs_under_autocast(name, form, kind):
    model, images, want = form_of(name, form)
    with torch.inference_mode(), torch.autocast("cpu", kind):
        assert relative_error(model(images), want) < 0.15


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_four_threads_get_what_one_gets(name, form):
    model, images, _ = form_of(name, form)
    assert worst_in_threads(model, images.split(1), calls=3) < 1e-5
