"""Complete run configurations, one module per family."""

from convattn.library_words import trusted
from convattn.recipes.recipe import Recipe

with trusted():
    from convattn.recipes import (
        cotnet,
        das,
        detection,
        finetune,
        groupmixformer,
        nextvit,
        segmentation,
        small_images,
        smt,
    )

__all__ = ["RECIPES"]

_MODULES = (smt, groupmixformer, nextvit, cotnet, das, small_images, finetune, segmentation, detection)

RECIPES: dict[str, Recipe] = {made.__name__: made for module in _MODULES for made in module.RECIPES}
