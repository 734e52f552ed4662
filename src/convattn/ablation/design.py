"""A design: one network of a comparison, as plain data, and a comparison of several."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Comparison", "Design", "Role", "plug_in"]

Role = Literal["base", "design", "control", "placebo"]


@dataclass(frozen=True)
class Design:
    """A network: a model's name and options, and what is attached to it.

    Counts and published figures are of the paper's setting (224 pixels, 1000 classes); None where there are none.
    """

    name: str  # of the row, unique in its comparison
    model: str = ""  # as `create_model` takes it
    options: Mapping[str, Any] = field(default_factory=dict)
    plug_ins: tuple[Mapping[str, Any], ...] = ()  # as `ModelConfig.plug_ins`
    role: Role = "design"
    control_of: str = ""  # of a control or placebo: the design that is held against it too
    parameters: int | None = None  # counted
    gmacs: float | None = None  # counted in full, 10⁹ multiply-adds
    published: float | None = None  # in percent, of what the comparison says
    note: str = ""  # what a reader must know of this row
    missing: str = ""  # why it cannot be built; then nothing else of it counts


@dataclass(frozen=True)
class Comparison:
    """Designs held against the first of them that is a base."""

    title: str
    designs: tuple[Design, ...]
    source: str = ""  # paper and table
    published_as: str = ""  # what `published` of the designs is
    note: str = ""  # what is open or not matched

    @property
    def base(self) -> Design:
        """What the others are held against; raises ValueError if none is marked."""
        for design in self.designs:
            if design.role == "base":
                return design
        raise ValueError(f"{self.title}: none of the designs is the base")

    @property
    def buildable(self) -> tuple[Design, ...]:
        """The designs that can be built."""
        return tuple(design for design in self.designs if not design.missing)


def plug_in(kind: Literal["attach", "replace"], mixer: str, where: str) -> Mapping[str, Any]:
    """One of `ModelConfig.plug_ins`, started as the mixer's authors do."""
    given = {"kind": kind, "mixer": mixer, "where": where}
    return given | {"init": "paper"} if kind == "attach" else given
