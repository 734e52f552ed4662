"""Names of CoTNet's modules in the authors' files (github.com/JDAI-CV/CoTNet)."""

from convattn.weights.rename import NameMap

__all__ = ["COTNET_NAMES"]

_BLOCK = "layer{s}.{b}"
_MIXER = f"{_BLOCK}.conv2"

COTNET_NAMES = NameMap(
    modules={
        "conv1.conv": "conv1",
        "conv1.norm": "bn1",
        **{name: name for name in ("conv1.{i}", "fc")},
        **{f"{_BLOCK}.{name}": f"{_BLOCK}.{name}" for name in ("conv1", "bn1", "conv3", "bn3", "downsample.{i}")},
        # contextual transformer
        f"{_MIXER}.key.{{i}}": f"{_MIXER}.key_embed.{{i}}",
        f"{_MIXER}.embed.{{i}}": f"{_MIXER}.embed.{{i}}",
        f"{_MIXER}.value.{{i}}": f"{_MIXER}.conv1x1.{{i}}",
        f"{_MIXER}.norm": f"{_MIXER}.bn",
        f"{_MIXER}.gate.{{i}}": f"{_MIXER}.se.{{i}}",
        # SE convolution
        **{f"{_MIXER}.{name}": f"{_MIXER}.{name}" for name in ("conv", "bn0", "fc1", "bn1", "fc2")},
    },
)
