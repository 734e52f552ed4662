"""Complete run configurations, one module per family."""

from collections.abc import Callable

from convattn.recipes import smt
from convattn.training.config import RunConfig

__all__ = ["RECIPES"]

RECIPES: dict[str, Callable[[], RunConfig]] = {recipe.__name__: recipe for recipe in smt.RECIPES}
