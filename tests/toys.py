"""Toy configurations, one row a family: small enough that a test of every registered model takes a moment.

A new family adds its row, keyed by the name of its file in `convattn.backbones`, and gets the whole contract suite.
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

import convattn


@dataclass(frozen=True)
class Toy:
    """How the contract suite builds and feeds a family.

    Args:
        options: overrides that make any variant of the family small.
        image_size: an odd, non-square size that the family takes.
        least_size: the shortest side that it takes.
    """

    options: dict[str, Any]
    image_size: tuple[int, int] = (33, 47)
    least_size: int = 1


TOYS = {
    "cotnet": Toy(dict(dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), width_ratio=2.0)),
    "se_cotnetd_152": Toy(dict(dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), width_ratio=2.0), least_size=17),
    "das": Toy(dict(dims=(8, 16, 16, 24), depths=(1, 1, 2, 1))),
    "das_mobilenet": Toy(dict(channel_multiplier=0.25, depths=(1, 1, 2, 1, 1, 1, 1), head_dim=32, alpha=0.5)),
    "groupmixformer": Toy(dict(dims=(10, 20, 20, 20), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2))),
    "hybrid": Toy(
        dict(
            mixers=("sam", "cot", "cot+e_mhsa", "e_mhsa"),
            mixer_options={"e_mhsa": {"head_dim": 8}, "sam": {"num_heads": 2}},
            dims=(8, 16, 16, 24),
            depths=(1, 1, 2, 1),
            mlp_ratios=(2, 2, 2, 2),
        ),
        least_size=4,
    ),
    "next_vit": Toy(
        dict(
            stem_dims=(8, 8, 8),
            stem_stride=4,
            conv_dims=(8, 16, 16, 16),
            transformer_dims=(16, 32, 32, 32),
            depths=(1, 2, 2, 2),
            convs_per_transformer=(1, 1, 1, 1),
            head_dim=8,
            sr_ratios=(8, 4, 2, 1),
        ),
        image_size=(41, 31),
        least_size=25,
    ),
    "smt": Toy(
        dict(dims=(8, 16, 16, 24), depths=(1, 1, 2, 1), attention_heads=(2, 2), mlp_ratios=(2, 2, 2, 2)), least_size=4
    ),
}


def timm_name(name: str) -> str:
    """The name of our model `name` in timm's registry; prefixed where timm has a model of that name itself."""
    prefixed = f"convattn_{name}"
    return prefixed if timm.is_model(prefixed) else name


def family_file(name: str) -> str:
    return timm.model_entrypoint(timm_name(name)).__module__.rpartition(".")[2]


def toy(name: str) -> Toy:
    """The toy of a model's family, or its own where it has a row of its name."""
    return TOYS.get(name) or TOYS[family_file(name)]


def build_toy(name: str, **options: Any) -> nn.Module:
    """A small form of `name` in evaluation mode, with batch-norm statistics and affine weights drawn at random."""
    model = convattn.create_model(name, **{**toy(name).options, "num_classes": 7, **options})
    randomise_norms(model)
    return model.eval()


def shallow_toy(name: str, **options: Any) -> nn.Module:
    """With one block a stage, which takes less time to trace; Next-ViT's second block of a stage is of another kind."""
    depths = toy(name).options["depths"]
    return build_toy(name, depths=depths if family_file(name) == "next_vit" else (1,) * len(depths), **options)


def randomise_norms(model: nn.Module) -> None:
    """Draw the statistics and affine weights of every norm, and every bias: at 0 and 1 a wrong order can look right."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name == "running_var":
                tensor.data.uniform_(0.5, 2.0)
            elif name in ("running_mean", "bias"):
                tensor.data.normal_(std=0.3)
            elif name in ("weight", "gamma") and tensor.ndim == 1:
                tensor.data.uniform_(0.5, 1.5)


def lively(model: nn.Module) -> nn.Module:
    """Draw all weights at unit scale: as initialised a branch, and what attention adds to a mean, can hardly count."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def toy_images(name: str, batch: int = 2, in_chans: int = 3) -> Tensor:
    return torch.randn(batch, in_chans, *toy(name).image_size)


def relative_error(got: Tensor, want: Tensor) -> float:
    """max|got - want| / max|want|; infinite where a NaN is."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    got, want = got.detach().double(), want.detach().double()
    error = float((got - want).abs().max() / want.abs().max())
    return error if error == error else float("inf")
