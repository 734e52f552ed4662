"""From a comparison and a recipe to a plan: what can be built, controls beside it, what everything costs here."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from convattn.ablation.arms import check_names, placebo_of
from convattn.ablation.building import build
from convattn.ablation.costs import measure_costs
from convattn.ablation.design import Comparison, Design
from convattn.ablation.plan import Plan
from convattn.ablation.widening import of_equal_latency, of_equal_parameters
from convattn.config_errors import ConfigError
from convattn.nearest import UnknownName, nearest
from convattn.report.environment import describe_environment
from convattn.training.config import RunConfig

__all__ = ["plan_comparison", "with_controls", "without_unbuildable"]


def plan_comparison(
    comparison: Comparison,
    recipe: RunConfig,
    *,
    num_classes: int,
    controls: Collection[str] = (),
    control_of: str | None = None,
    note: Callable[[str], object] = lambda line: None,
    **fields: Any,
) -> Plan:
    """Build each design once, add the controls, measure what all cost.

    Args:
        comparison: the designs; those that cannot be built here are named as such in the plan.
        num_classes: with which networks are built for controls.
        controls: of "parameters", "latency", "placebo".
        control_of: the design that controls are made for; that with the most parameters by default.
        **fields: further ones of `Plan`.

    Raises:
        ConfigError: if the base cannot be built, no design is left, or a budget ends before an epoch.
        UnknownName: for a design of `control_of` that is not there. DataError, OutOfMemory: as `train`.
    """
    options = {"num_classes": num_classes}
    note("building")
    comparison, sizes = without_unbuildable(comparison, options)
    if controls:
        note("controls")
        image_size = recipe.data.image_size
        comparison = with_controls(comparison, sizes, controls, control_of, options, image_size)
    check_names(comparison)
    configs = {
        design.name: replace(
            recipe, model=replace(recipe.model, name=design.model, options=design.options, plug_ins=design.plug_ins)
        )
        for design in comparison.buildable
    }
    costs = measure_costs(configs, note=lambda name: note(f"measuring {name}"))
    return Plan(comparison, recipe, costs, environment=tuple(describe_environment()), **fields)


def without_unbuildable(comparison: Comparison, options: Mapping[str, Any]) -> tuple[Comparison, dict[str, int]]:
    """The comparison with the reason in each design that cannot be built, and the parameters of the others.

    Raises:
        ConfigError: if the base is among them, or nothing but it is left.
    """
    designs, sizes = [], {}
    for design in comparison.designs:
        if not design.missing:
            try:
                model = build(design, meta=True, **options)
            except UnknownName:
                raise
            except Exception as error:  # whatever a network's constructor raises
                reason = " ".join(str(error).split()) or f"{type(error).__name__} in {design.model}"
                if design.role == "base":
                    raise ConfigError(f"{design.name} cannot be built: {reason}") from None
                design = Design(design.name, missing=reason)
            else:
                sizes[design.name] = sum(parameter.numel() for parameter in model.parameters())
        designs.append(design)
    if len(sizes) < 2:
        reasons = "; ".join(f"{design.name}: {design.missing}" for design in designs if design.missing)
        raise ConfigError(f"nothing to compare with {comparison.base.name}: {reasons}")
    return replace(comparison, designs=tuple(designs)), sizes


def with_controls(
    comparison: Comparison,
    sizes: Mapping[str, int],
    controls: Collection[str],
    control_of: str | None,
    options: Mapping[str, Any],
    image_size: Any = None,
) -> Comparison:
    """The comparison with the base at equal parameters and latency, and a placebo; what cannot be had says why."""
    base = comparison.base
    candidates = {design.name: design for design in comparison.buildable if design is not base}
    if control_of is not None and control_of not in candidates:
        raise UnknownName(f"unknown design {control_of!r}; {nearest(control_of, candidates)}")
    target = candidates[control_of or max(candidates, key=lambda name: sizes[name])]
    makers: dict[str, tuple[str, Callable[[], Design]]] = {
        "parameters": ("base, equal parameters", lambda: of_equal_parameters(base, sizes[target.name], options)),
        "latency": ("base, equal latency", lambda: of_equal_latency(base, target, options, image_size)),
        "placebo": (f"{target.name}, frozen", lambda: placebo_of(target)),
    }
    added = []
    for control, (name, make) in makers.items():
        if control in controls:
            try:
                added.append(replace(make(), control_of=target.name))
            except (ValueError, RuntimeError) as error:
                added.append(Design(name, role="control", missing=str(error)))
    return replace(comparison, designs=(*comparison.designs, *added))
