"""What holds for every form of a model that somebody may run, whatever made it."""

import types
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import convattn
from convattn.deploy.graph_form import graph_form
from convattn.mixers.registry import create_mixer
from convattn.ops.linear import Linear2d
from in_threads import worst_in_threads
from toys import build_toy, lively, randomise_norms, relative_error, toy_images

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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_no_images_give_no_rows(name, form):
    model, images, want = form_of(name, form)
    with torch.inference_mode():
        assert model(images[:0]).shape == (0, want.shape[1])


class Shared(nn.Module):
    """One block under two names and twice in a sequence, an activation that several layers are followed by."""

    def __init__(self, mixer: str):
        super().__init__()
        self.stem, act = nn.Conv2d(3, 80, 3, padding=1), nn.ReLU()
        self.first = nn.Sequential(act, create_mixer(mixer, 80), nn.Conv2d(80, 80, 1), act)
        self.second = nn.Sequential(self.first[1], act, nn.Sigmoid(), nn.Conv2d(80, 80, 1), self.first[1], act)
        self.alias = self.second

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.first(self.stem(x))).mean((2, 3))


def tied() -> nn.Module:
    """Layers and norms of one weight each, and norms that share the memory of their statistics."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Linear2d(8, 8), nn.BatchNorm2d(8)),
        *(nn.ReLU(), Linear2d(8, 8), nn.BatchNorm2d(8), nn.Flatten(1), nn.Linear(8 * 14 * 14, 5)),
    )
    model[5].weight = model[2].weight
    model[6].weight = model[3].weight
    model[3].running_mean = model[1].running_mean[:]
    return model


def hooked(hang: Callable[[nn.Module], object]) -> nn.Module:
    """Blocks with something hung on a part of them, on themselves, or on a layer beside them."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), create_mixer("cot", 16)),
        *(create_mixer("triplet", 16), Linear2d(16, 16), nn.ReLU(), nn.Conv2d(16, 16, 1)),
    )
    for part in (model[0], model[1], model[2], model[3].key[0], model[4], model[5], model[6]):
        hang(part)
    return model


def with_a_forward_of_its_own(module: nn.Module) -> None:
    module.forward = types.MethodType(lambda self, x: 1.5 * type(self).forward(self, x), module)


WALKED = {
    **{f"shared {mixer}": partial(Shared, mixer) for mixer in ("bam", "cot", "das", "gma", "sam", "triplet")},
    "tied": tied,
    "forward hooks": lambda: hooked(lambda part: part.register_forward_hook(lambda m, args, output: 1.5 * output)),
    "pre-hooks": lambda: hooked(lambda part: part.register_forward_pre_hook(lambda m, args: (1.5 * args[0],))),
    "pre-hooks with kwargs": lambda: hooked(
        lambda part: part.register_forward_pre_hook(
            lambda m, args, kwargs: ((1.5 * args[0],), kwargs), with_kwargs=True
        )
    ),
    "own forward": lambda: hooked(with_a_forward_of_its_own),
    "computed weights": lambda: hooked(
        lambda part: parametrizations.weight_norm(part) if isinstance(part, nn.Conv2d | nn.Linear) else None
    ),
}


HUNG = {
    **dict.fromkeys(("forward hooks", "pre-hooks", "pre-hooks with kwargs"), "forward hook"),
    "own forward": "forward of its own",
    "computed weights": "parametrised weight",
}


@pytest.mark.parametrize("case", WALKED)
def test_every_form_sees_ties_and_what_hangs_on_modules(case):
    model, images = WALKED[case](), torch.randn(2, 3, 16, 16)
    randomise_norms(model)
    model.eval()(images)  # with gradients: what is kept of that is copied, too
    fused = convattn.fuse(model)
    with torch.no_grad():
        want = model(images)
        again = convattn.fuse(fused)
        forms = [fused, again, graph_form(model), graph_form(fused), graph_form(again)]
        forms += [convattn.prepack(form, images) for form in (model, fused)]
        assert [form for form in forms if relative_error(form(images), want) > 1e-5] == []
    assert again.fusion_report == []
    if isinstance(model, Shared):
        assert fused.first[1] is fused.second[0] is fused.second[4] and fused.alias is fused.second
    assert fused.fusion_report.kept == ({"3": f"key.0 has a {HUNG[case]}"} if case in HUNG else {})
    assert case not in HUNG or f"| block kept | why |\n| --- | --- |\n| 3 | key.0 has a {HUNG[case]} |" in str(
        fused.fusion_report
    )


class Doubled(nn.Module):
    """In front of a class: it computes more than that."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def derived(block: nn.Module) -> None:
    block.__class__ = type("Derived", (Doubled, type(block)), {})


CHANGED: dict[str, tuple[str, Callable[[nn.Module], object], str]] = {
    "derived cot": ("cot", derived, "gives other numbers"),
    "derived sam": ("sam", derived, "gives other numbers"),
    "derived norm": ("cot", lambda block: derived(block.value[1]), "gives other numbers"),
    "activation": ("cot", lambda block: setattr(block, "act", nn.GELU()), "gives other numbers"),
    "another norm": ("cot", lambda block: setattr(block, "norm", nn.GroupNorm(4, 16)), "cannot be made"),
    "no bias": ("cot", lambda block: setattr(block.embed[3], "bias", None), "cannot be made"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_block_that_is_not_as_its_class_builds_it_keeps_its_numbers(case):
    mixer, change, words = CHANGED[case]
    model = nn.Sequential(nn.Conv2d(3, 16, 3), create_mixer(mixer, 16), create_mixer("triplet", 16))
    change(model[1])
    randomise_norms(model.eval())
    heard: list[Tensor] = []
    model.register_forward_hook(lambda module, inputs, output: heard.append(output))
    fused, images = convattn.fuse(model), torch.randn(2, 3, 16, 16)
    assert heard == []
    with torch.no_grad():
        assert relative_error(fused(images), model(images)) < 1e-5
        assert relative_error(convattn.fuse(fused)(images), model(images)) < 1e-5
    assert list(fused.fusion_report.kept) == ["1"] and words in fused.fusion_report.kept["1"]
    assert "PooledGate" in {part.kind for part in fused.fusion_report}


@pytest.mark.parametrize("name", NAMES)
def test_fusing_again_finds_nothing(name):
    fused, images, want = form_of(name, "fused")
    again = convattn.fuse(fused)
    with torch.inference_mode():
        assert relative_error(again(images), want) < 1e-4
    assert again.fusion_report == [] and again.fusion_report.kept == fused.fusion_report.kept == {}


def test_what_is_put_into_a_fused_model_is_fused():
    fused = convattn.fuse(build_toy("resnet18_das_cifar"))
    gated = convattn.attach(fused, "triplet", where=["layer3.0"], init="paper")
    randomise_norms(gated)
    again, images = convattn.fuse(gated), torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        assert relative_error(again(images), gated(images)) < 1e-5
    assert {part.kind for part in again.fusion_report} == {"PooledGate"}
