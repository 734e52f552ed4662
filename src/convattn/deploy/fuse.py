"""The inference form of a model: every block that offers one is replaced by it, on a copy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from convattn.deploy.fold_norms import Fold, fold_norms
from convattn.deploy.form_check import Inputs, disagreement, inputs_of
from convattn.walk import copied, exchange, hung_inside, without_listeners

__all__ = ["FusedPart", "FusionReport", "fuse"]


@dataclass(frozen=True)
class FusedPart:
    """One module that was replaced by its inference form, or took in a norm beside it."""

    name: str  # dotted name in the model
    kind: str  # class of the module
    form: str  # first sentence of what its inference form is
    parameters_before: int
    parameters_after: int


class FusionReport(list[FusedPart]):
    """What `fuse` did, a row a part; `print` shows it as a table."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[str, str] = {}  # for each batch norm that is still there, by its dotted name, why
        self.kept: dict[str, str] = {}  # for each block that has an inference form and stays as it is, why

    def to_markdown(self) -> str:
        """The rows as a table, below it what is left and what is kept; a line if there is nothing of either."""
        lines = ["| part | kind | inference form | parameters |", "| --- | --- | --- | ---: |"] if self else []
        for part in self:
            change = f"{part.parameters_before:,} -> {part.parameters_after:,}"
            lines.append(f"| {part.name} | {part.kind} | {part.form} | {change} |")
        for title, reasons in (("batch norm left", self.left), ("block kept", self.kept)):
            if reasons:
                lines += ["", f"| {title} | why |", "| --- | --- |"]
                lines += [f"| {name} | {reason} |" for name, reason in reasons.items()]
        return "\n".join(lines).strip() or "nothing to fuse"

    __str__ = to_markdown


@torch.inference_mode(False)
@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference: same outputs, fewer and larger operations.

    Whatever a block knows to simplify, it offers as `fused()`: parallel kernels merged, additions moved into weights,
    projections packed, norms folded; timm's blocks as timm's own `fuse()`, `reparameterize()` and the like. Batch norms
    that are left are folded into the convolutions and linear layers beside them, whoever wrote the network: what stands
    beside what is read from a forward pass on shapes. All of it is exact but for rounding (1e-9 relative in float64 on
    random statistics). A block with a hook, a parametrised weight or a method of its own in it stays as it is. What
    stands under several names is one module in the copy, too; a model that is fused already comes back as it is. The
    copy is tried on a small image of noise; where it reads numbers of its layers by itself, norms stay.

    Args:
        model: any model; `model` itself is left as it is, its training flag too.

    Returns:
        The copy, in evaluation mode, channels-last, without gradients. Its `.fusion_report` is a `FusionReport`, a
        list of `FusedPart` rows; a model without such blocks comes back as a plain copy with an empty one.
    """
    model = copied(model).eval().requires_grad_(False)
    offering = {name: part for name, part in model.named_modules() if any(_offers(name, part))}
    report = FusionReport()
    report.kept = {name: why for name, part in offering.items() if (why := hung_inside(part))}
    inputs = inputs_of(model, [*offering, ""])
    model = _simplify(model, "", report, inputs)
    sizes = {name: _size(module) for name, module in model.named_modules()}
    unfolded = copied(model)
    folds, report.left = fold_norms(model)
    if folds and (why := _is_other(unfolded, model, inputs)):
        report.left = {fold.norm: why for fold in folds} | report.left
        model, folds = unfolded, []
    report += _rows(model, folds, sizes)
    vars(model)["fusion_report"] = report
    for tensor in (*model.parameters(), *model.buffers()):
        # Kernels that lie as the maps do are not copied at every call (a 3×3 of 256 to 512 channels: 2.9 ms to 0.7).
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)


def _simplify(
    module: nn.Module, name: str, report: FusionReport, inputs: Inputs, *, is_form: bool = False
) -> nn.Module:
    """`module` with every part that offers an inference form replaced by it; itself too, unless it is one.

    A form that gives other numbers than its part is not taken: such a part is not what its class builds, since
    somebody has put another layer into it, or it is of a class of somebody's that computes more.
    """

    def form_of(inside: str, part: nn.Module) -> nn.Module | None:
        path = f"{name}.{inside}".strip(".")
        own, theirs = (None, None) if is_form and not inside else _offers(path, part)
        if own is None and theirs is None:
            return None
        before = _size(part)
        try:
            fused, form = _ours(own) if own is not None else _timms(part)
            why = disagreement(part, fused, inputs.get(path))
        except Exception as error:  # it is made of layers that somebody has put in others' place
            why = f"its inference form cannot be made ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        if why is not None:
            report.kept[path] = why
            return None
        if own is None:
            fused = _simplify(fused, path, report, inputs, is_form=True)
        else:
            for piece in fused.modules():
                vars(piece)[_MARK] = True
        report.append(FusedPart(path, type(part).__name__, form, before, _size(fused)))
        return fused

    return exchange(module, form_of)


def _ours(make: Callable[[], nn.Module]) -> tuple[nn.Module, str]:
    """The inference form of a block of ours, and what it is."""
    return make(), (make.__doc__ or "").strip().partition(":")[2].partition("\n")[0].strip().rstrip(".")


def _timms(part: nn.Module) -> tuple[nn.Module, str]:
    """The same of a block of timm's."""
    copy = copied(part)
    make = _method_of_timm(copy)
    assert make is not None
    with _defaults_of(copy):
        return make() or copy, f"what timm's {make.__name__} makes of it"  # some work in place


_MARK = "is_inference_form"  # of all that `fused()` gave: some of it still has that method, as its class does both


def _offers(
    name: str, block: nn.Module
) -> tuple[Callable[[], nn.Module] | None, Callable[[], nn.Module | None] | None]:
    """Our method that makes the inference form of a block, or timm's; none if there is none to make."""
    own = getattr(block, "fused", None)
    if callable(own):
        return (None if _MARK in vars(block) else own), None
    return None, _method_of_timm(block) if name else None  # timm calls those of a network's parts, not its own


def _method_of_timm(module: nn.Module) -> Callable[[], nn.Module | None] | None:
    """How timm simplifies this block for inference (`timm.utils.reparameterize_model` calls these)."""
    methods = (getattr(module, name, None) for name in ("fuse", "reparameterize", "switch_to_deploy"))
    return next((m for m in methods if callable(m) and str(getattr(m, "__module__", "")).startswith("timm.")), None)


@contextmanager
def _defaults_of(module: nn.Module) -> Iterator[None]:
    """New tensors get the type and device of the block's."""
    like = next(module.parameters())
    before = torch.get_default_dtype()
    torch.set_default_dtype(like.dtype)
    try:
        with like.device:
            yield
    finally:
        torch.set_default_dtype(before)


def _is_other(model: nn.Module, folded: nn.Module, inputs: Inputs) -> str | None:
    """Why norms are not folded: the network reads a layer or a norm by itself, and gives other numbers then."""
    if callable(getattr(model, "products", None)):  # what it gives is decided by its numbers, and rounding decides too
        return None
    why = disagreement(without_listeners(copied(model)), without_listeners(copied(folded)), inputs.get(""))
    return why and "with norms folded the network gives other numbers or does not run: it reads its layers by itself"


def _rows(model: nn.Module, folds: list[Fold], sizes: dict[str, int]) -> list[FusedPart]:
    """One row a layer that took in norms."""
    taken: dict[str, list[str]] = {}
    before: dict[str, int] = {}
    for fold in folds:
        place = "behind" if fold.is_behind else "in front of"
        for layer in fold.layers:
            taken.setdefault(layer, []).append(f"batch norm {fold.norm} {place} it")
            before[layer] = before.get(layer, sizes[layer]) + sizes[fold.norm]
    modules = {layer: model.get_submodule(layer) for layer in taken}
    return [
        FusedPart(layer, type(module).__name__, "took in " + " and ".join(taken[layer]), before[layer], _size(module))
        for layer, module in modules.items()
    ]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
