"""The inference form of a model: every block that offers one is replaced by it, on a copy."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from convattn.deploy.fold_norms import Fold, fold_norms

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
    """What `fuse` did, a row a part; `print` shows it as a table.

    Args:
        parts: the rows.
        left: for each batch norm that is still there, by its dotted name, why.
    """

    def __init__(self, parts: Iterable[FusedPart] = (), left: dict[str, str] | None = None):
        super().__init__(parts)
        self.left = left or {}

    def to_markdown(self) -> str:
        """The rows as a table, below it the batch norms that are left; a line if there is nothing of either."""
        lines = ["| part | kind | inference form | parameters |", "| --- | --- | --- | ---: |"] if self else []
        for part in self:
            change = f"{part.parameters_before:,} -> {part.parameters_after:,}"
            lines.append(f"| {part.name} | {part.kind} | {part.form} | {change} |")
        if self.left:
            lines += ["", "| batch norm left | why |", "| --- | --- |"]
            lines += [f"| {name} | {reason} |" for name, reason in self.left.items()]
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
    random statistics). A block with a hook or a parametrised weight in it stays as it is.

    Args:
        model: any model; `model` itself is left as it is, its training flag too.

    Returns:
        The copy, in evaluation mode, channels-last, without gradients. Its `.fusion_report` is a `FusionReport`, a
        list of `FusedPart` rows; a model without such blocks comes back as a plain copy with an empty one.
    """
    report = FusionReport()
    model = _simplify(deepcopy(model).eval().requires_grad_(False), "", report)
    sizes = {name: _size(module) for name, module in model.named_modules()}
    folds, report.left = fold_norms(model)
    report += _rows(model, folds, sizes)
    vars(model)["fusion_report"] = report
    for tensor in (*model.parameters(), *model.buffers()):
        # Kernels that lie as the maps do are not copied at every call (a 3×3 of 256 to 512 channels: 2.9 ms to 0.7).
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)


def _simplify(module: nn.Module, name: str, report: FusionReport) -> nn.Module:
    """`module` with every part that offers an inference form replaced by it; itself, if it offers one."""
    own = getattr(module, "fused", None)
    theirs = _method_of_timm(module) if name else None  # timm calls those of a network's parts, not its own
    if (theirs is None and not callable(own)) or _is_changed(module):
        return _simplify_children(module, name, report)
    before = _size(module)
    if callable(own):
        fused = own()
        form = (own.__doc__ or "").strip().partition(":")[2].partition("\n")[0].strip().rstrip(".")
    else:
        assert theirs is not None
        with _defaults_of(module):
            fused = theirs() or module  # some work in place
        _simplify_children(fused, name, report)
        form = f"what timm's {theirs.__name__} makes of it"
    report.append(FusedPart(name, type(module).__name__, form, before, _size(fused)))
    return fused


def _simplify_children(module: nn.Module, name: str, report: FusionReport) -> nn.Module:
    for child_name, child in module.named_children():
        setattr(module, child_name, _simplify(child, f"{name}.{child_name}".removeprefix("."), report))
    return module


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


def _is_changed(block: nn.Module) -> bool:
    """Whether a hook or parametrisation hangs in it or a part was replaced: its inference form would not know."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or getattr(part, "is_inserted", False) or is_parametrized(part)
        for part in block.modules()
    )


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
