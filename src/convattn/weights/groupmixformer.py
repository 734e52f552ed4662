"""Names of GroupMixFormer's modules in the authors' files (github.com/AILab-CVC/GroupMixFormer)."""

from convattn.weights.rename import NameMap

__all__ = ["GROUPMIXFORMER_NAMES"]

_BLOCK = "stages.{i}.blocks.{j}"
_THEIRS = "groupmixformer_backbone.{i}.gma_stage.{j}"
_AGGREGATOR = f"{_BLOCK}.token_mixer.aggregator"
_THEIR_AGGREGATOR = f"{_THEIRS}.att.aggregator"

GROUPMIXFORMER_NAMES = NameMap(
    modules={
        "stem.conv1": "conv_stem.proj1",
        "stem.norm1": "conv_stem.norm1",
        "stem.conv2": "conv_stem.proj2",
        "stem.norm2": "conv_stem.norm2",
        "stages.{i}.downsample.depthwise": "patch_embed_layers.{i}.proj.conv1",
        "stages.{i}.downsample.pointwise": "patch_embed_layers.{i}.proj.pointwise_conv",
        "stages.{i}.downsample.norm": "patch_embed_layers.{i}.norm",
        f"{_BLOCK}.position.conv": f"{_THEIRS}.cpe.proj",
        f"{_BLOCK}.norm1": f"{_THEIRS}.norm1",
        f"{_BLOCK}.norm2": f"{_THEIRS}.norm2",
        f"{_BLOCK}.token_mixer.qkv": f"{_THEIRS}.att.qkv",
        f"{_BLOCK}.token_mixer.position.convs.{{k}}": f"{_THEIRS}.att.crpe.conv_list.{{k}}",
        f"{_BLOCK}.token_mixer.proj": f"{_THEIRS}.att.proj",
        # Segments count from 0 in both; theirs calls the branch beside the attention 0 as well.
        f"{_AGGREGATOR}.branches.{{g}}.mix": f"{_THEIR_AGGREGATOR}.agg{{g}}.conv1",
        f"{_AGGREGATOR}.branches.{{g}}.pointwise": f"{_THEIR_AGGREGATOR}.agg{{g}}.pointwise_conv",
        f"{_AGGREGATOR}.branches.{{g}}.norm": f"{_THEIR_AGGREGATOR}.norm{{g}}",
        f"{_AGGREGATOR}.non_attention.mix": f"{_THEIR_AGGREGATOR}.agg0.conv.conv1",
        f"{_AGGREGATOR}.non_attention.pointwise": f"{_THEIR_AGGREGATOR}.agg0.conv.pointwise_conv",
        f"{_AGGREGATOR}.non_attention.norm": f"{_THEIR_AGGREGATOR}.agg0.norm",
        f"{_BLOCK}.channel_mixer.fc1": f"{_THEIRS}.mlp.fc1",
        f"{_BLOCK}.channel_mixer.fc2": f"{_THEIRS}.mlp.fc2",
        "norm": "norm4",
        "head.fc": "head",
    },
)
