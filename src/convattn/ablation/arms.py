"""Comparisons of one's own: a base with one block or another in it, or with one option at several values."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from convattn.ablation.design import Comparison, Design, plug_in
from convattn.config_errors import ConfigError, check
from convattn.mixers.registry import list_mixers
from convattn.nearest import UnknownName, nearest

__all__ = ["NONE", "check_names", "on_base", "placebo_of", "slug", "with_mixers", "with_values"]

NONE = "none"  # the base as it is
_REPLACE = "replace:"  # in front of a pattern of convolutions


def with_mixers(
    base: str, mixers: Sequence[str], places: Sequence[str] = ("stages",), options: Mapping[str, Any] | None = None
) -> Comparison:
    """A base alone, and with each mixer at each place.

    Args:
        base: a model's name.
        mixers: of `list_mixers()`; "none" is the base, which is there in any case.
        places: where `attach` puts them ("stages", "blocks", a pattern of modules), or "conv3x3" and
            "replace:PATTERN" for convolutions whose place they take.
        options: of the base.

    Raises:
        UnknownName: for a mixer that does not exist, naming the nearest. ConfigError: without a mixer or place.
    """
    known = list_mixers()
    for mixer in mixers:
        if mixer != NONE and mixer not in known:
            raise UnknownName(f"unknown mixer {mixer!r}; {nearest(mixer, [NONE, *known])}")
    wanted = [mixer for mixer in mixers if mixer != NONE]
    check(bool(wanted and places), "nothing to compare: name a mixer and a place")
    designs = [Design(NONE, base, options or {}, role="base")]
    for mixer in wanted:
        for place in places:
            name = mixer if len(places) == 1 else f"{mixer} at {place}"
            designs.append(Design(name, base, options or {}, (_put(mixer, place),)))
    return check_names(Comparison(f"Blocks in {base}", tuple(designs)))


def with_values(base: str, option: str, values: Sequence[Any], options: Mapping[str, Any] | None = None) -> Comparison:
    """A base as it is, and with an option, a keyword of `create_model`, at each of some values."""
    own = options or {}
    designs = [Design("base", base, own, role="base")]
    designs += [Design(f"{option}={_as_word(value)}", base, {**own, option: value}) for value in values]
    return check_names(Comparison(f"{option} of {base}", tuple(designs)))


def on_base(comparison: Comparison, model: str, options: Mapping[str, Any] | None = None) -> Comparison:
    """The same designs on another network, such as a paper's table on its family's smallest; without their counts.

    Rows that are models of their own, as `nextvit_large` beside `nextvit_small`, are left out by name.
    """
    own = comparison.base.model
    designs = []
    for design in comparison.designs:
        if not design.missing and design.model != own:
            designs.append(Design(design.name, missing=f"it is {design.model}, not {own} with options"))
        elif design.missing:
            designs.append(design)
        else:
            moved = replace(design, model=model, options={**(options or {}), **design.options})
            designs.append(replace(moved, parameters=None, gmacs=None, published=None))
    title = f"{comparison.title}, on {model}"
    return replace(comparison, title=title, designs=tuple(designs), published_as="")


def placebo_of(design: Design) -> Design:
    """The design with its blocks kept as they start: they cost what they cost, and learn nothing.

    Raises:
        ConfigError: if nothing is attached in it.
    """
    check(bool(design.plug_ins), f"{design.name} has no block that could be kept from learning, so there is no placebo")
    frozen = tuple({**one, "frozen": True} for one in design.plug_ins)
    return Design(
        f"{design.name}, frozen",
        design.model,
        design.options,
        frozen,
        role="placebo",
        note="its blocks stay as they start: what they cost without what they learn",
    )


def check_names(comparison: Comparison) -> Comparison:
    """The comparison, if each design can have a folder of its own; ConfigError naming those that are called alike."""
    folders = Counter(slug(design.name) for design in comparison.designs)
    doubled = [design.name for design in comparison.designs if folders[slug(design.name)] > 1]
    if doubled:
        raise ConfigError(f"designs of equal names: {', '.join(doubled)}; name each once")
    return comparison


def slug(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^a-z0-9._+=]+", "-", name.lower()).strip("-.") or "design"


def _put(mixer: str, place: str) -> Mapping[str, Any]:
    if place == "conv3x3":
        return plug_in("replace", mixer, place)
    if place.startswith(_REPLACE):
        return plug_in("replace", mixer, place.removeprefix(_REPLACE))
    return plug_in("attach", mixer, place)


def _as_word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_as_word, value))
    return str(value)
