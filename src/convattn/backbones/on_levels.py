"""A network of heads on a backbone's levels: what it owes to the backbone, whatever the heads are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch import nn

from convattn.backbones.freezing import freeze
from convattn.backbones.levels import Level, fixed_size, size_multiple
from convattn.config_errors import ConfigError, check
from convattn.weights.official import name_map, unwrap_model
from convattn.weights.rename import Part

__all__ = ["OnLevels", "built_by", "describe"]


class OnLevels(nn.Module):
    """A backbone, of which parts may not learn, and room for heads.

    Args:
        backbone: gives maps at the levels' strides.
        levels: of it, the finest first.
        frozen_stages: how many parts of the backbone do not learn: 1 for the stem, 2 for the first stage too, ….
        frozen_norms: batch norms of the backbone do not learn, nor measure.

    Raises:
        ValueError: for a number out of range, or a backbone that does not tell where its stages end if they are to be
            frozen.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[Level], *, frozen_stages: int = 0, frozen_norms: bool = False
    ):
        super().__init__()
        self.levels = tuple(levels)
        self.frozen_stages, self.frozen_norms = frozen_stages, frozen_norms
        self.fixed_size: tuple[int, int] | None = None  # height and width of the only images that it takes
        self.size_multiple = 1  # of the sides of images that the backbone takes
        self.backbone = backbone
        self._freeze()

    # What does not learn

    def train(self, mode: bool = True) -> Self:
        """As any module's; what is frozen stays evaluated."""
        super().train(mode)
        if mode:
            self._freeze()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As any module's; what is frozen stays without gradients."""
        super().requires_grad_(requires_grad)
        self._freeze()
        return self

    def _freeze(self) -> None:
        freeze(self.backbone, self.levels, self.frozen_stages, self.frozen_norms)

    def extra_repr(self) -> str:
        """What does not learn."""
        return f"frozen_stages={self.frozen_stages}, frozen_norms={self.frozen_norms}"

    # The contract of networks

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The levels that the heads stand on, as modules of this model."""
        return [
            dict(num_chs=level.channels, reduction=level.stride, module=f"backbone.{level.module}")
            for level in self.levels
        ]

    def on_backbone(self) -> nn.ModuleList:
        """All that stands on the backbone."""
        return nn.ModuleList(part for name, part in self.named_children() if name != "backbone")

    def backbone_names(self, theirs: str = "backbone") -> Part:
        """The names of the backbone's authors, behind what the backbone is called in files of whole models."""
        inner = unwrap_model(self.backbone)
        place = next(name for name, module in self.named_modules() if module is inner)
        return Part(place, theirs, name_map(inner))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in backward instead of keeping their activations."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with two or more dimensions that must not decay: the backbone's."""
        own: Any = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in own()}


def built_by(create: Callable[..., OnLevels], model: Any, no_effect: str, **options: Any) -> Any:
    """A network of a run's configuration.

    Args:
        create: of a backbone's name and options, which are those of heads and of backbones.
        model: `RunConfig.model`.
        no_effect: what is said of its fields that only a classifier has.
        **options: of the heads.

    Raises:
        ConfigError: if it cannot be built so.
    """
    for name in ("drop_rate", "head_rows"):
        check(not getattr(model, name), f"model.{name} has no effect on {no_effect}")
    given = dict(drop_path_rate=model.drop_path_rate, pretrained_path=model.pretrained_path)
    options |= {name: value for name, value in given.items() if value} | model.options
    try:
        network = create(model.name, pretrained=model.pretrained, **options)
    except TypeError as error:
        raise ConfigError(f"model {model.name} cannot be built: {error}") from None
    if model.grad_checkpointing:
        try:
            network.set_grad_checkpointing()
        except (AssertionError, AttributeError):  # how timm's models say so
            raise ConfigError(f"model.grad_checkpointing: {model.name} does not offer it; leave it out") from None
    return network


def describe(
    model: OnLevels,
    name: str,
    options: Mapping[str, Any],
    *,
    task: str,
    image_size: tuple[int, int],
    num_classes: int,
    classifier: Sequence[str],
) -> None:
    """Tell a model what it takes (`pretrained_cfg`), and what builds it again where that is known (`built_as`).

    Args:
        name, num_classes: of the heads.
        options: with which the model is built, beside those of the backbone.
        task: whose builder builds it.
        image_size: height and width that it is made for, where the backbone leaves them free.
        classifier: the modules that tell classes.
    """
    trunk = model.backbone
    cfg: Any = getattr(trunk, "pretrained_cfg", None) or {}
    model.fixed_size = fixed_size(trunk, model.levels)
    model.size_multiple = 1 if model.fixed_size else size_multiple(trunk, model.levels)
    described = {key: cfg[key] for key in ("mean", "std") if key in cfg} | {
        "architecture": f"{name}_{cfg.get('architecture') or type(trunk).__name__}",
        "input_size": (getattr(trunk, "in_chans", 3), *(model.fixed_size or image_size)),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "num_classes": num_classes,
        "classifier": tuple(classifier),
    }
    vars(model)["pretrained_cfg"] = vars(model)["default_cfg"] = described
    built_as: Any = vars(trunk).pop("built_as", None)
    if built_as is not None:
        own = {"backbone": built_as["name"], "num_classes": num_classes, **options}
        vars(model)["built_as"] = {"task": task, "name": name, "options": built_as["options"] | own}
    rows = vars(trunk).pop("surgery", [])  # of `attach` and `replace`
    if rows:
        places = {name for name, _ in trunk.named_modules()}
        there = [row for row in rows if row["place"] in places]  # not behind the last level
        vars(model)["surgery"] = [{**row, "place": f"backbone.{row['place']}"} for row in there]
