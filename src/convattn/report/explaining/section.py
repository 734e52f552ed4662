"""What a page of explanations says: plain data and pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from convattn.data.images import as_jpeg, as_png
from convattn.explain.figures import as_picture
from convattn.task import Table

__all__ = ["Asked", "OnImage", "Panel", "Section", "Strip", "figure_panel"]

OnImage = Callable[[int], None]


@dataclass(frozen=True)
class Panel:
    """One picture."""

    picture: Image.Image
    caption: str
    is_figure: bool = False  # lines and letters: kept without loss, and shown larger

    def encoded(self) -> bytes:
        """PNG of a figure, JPEG of a picture."""
        return as_png(self.picture) if self.is_figure else as_jpeg(self.picture, quality=88)


@dataclass(frozen=True)
class Strip:
    """Panels that belong beside one another."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Section:
    """What one method shows of all models."""

    method: str  # its name in Python and on the command line
    title: str
    about: str  # what the pictures show, and on how little
    strips: tuple[Strip, ...] = ()
    tables: tuple[Table, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Without the pictures."""
        return {
            "method": self.method,
            "title": self.title,
            "about": self.about,
            "pictures": [{"of": one.title, "show": [panel.caption for panel in one.panels]} for one in self.strips],
            "tables": [{"title": one.title, "columns": one.columns, "rows": one.rows} for one in self.tables],
        }


@dataclass(frozen=True)
class Asked:
    """What methods are asked beside models and pictures."""

    layers: Sequence[str | int] = ()  # names or strides; each method's own where none are given
    target: str | None = None  # a class by name or number
    box_xyxy: tuple[float, float, float, float] | None = None  # of an object, in the pixels that a detector sees
    normalise: Any = "furthest"  # of the relative receptive field
    position: tuple[int, int] | None = None  # x and y in the pixels that the model sees; the middle by default
    masks: Path | None = None  # of objects, for the sfd score
    mask_classes: Sequence[str] = ()  # of these alone
    salient: float = 0.5

    @property
    def last_layer(self) -> str | int | None:
        """For a method that looks at one."""
        return self.layers[-1] if self.layers else None


def figure_panel(figure: Any, caption: str = "") -> Panel:
    """A figure of matplotlib as a panel."""
    return Panel(as_picture(figure), caption, is_figure=True)
