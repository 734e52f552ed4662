"""Names of SMT's modules in the authors' files (github.com/AFeng-x/SMT)."""

from convattn.weights.rename import NameMap

__all__ = ["SMT_NAMES"]

_BLOCK = "stages.{i}.blocks.{j}"
_THEIRS = "block{i+1}.{j}"

SMT_NAMES = NameMap(
    modules={
        "stem.conv1": "patch_embed1.conv.0",
        "stem.norm1": "patch_embed1.conv.1",
        "stem.conv2": "patch_embed1.conv.3",
        "stem.norm2": "patch_embed1.norm",
        "stages.{i}.downsample.conv": "patch_embed{i+1}.proj",
        "stages.{i}.downsample.norm": "patch_embed{i+1}.norm",
        f"{_BLOCK}.norm1": f"{_THEIRS}.norm1",
        f"{_BLOCK}.norm2": f"{_THEIRS}.norm2",
        # modulation
        f"{_BLOCK}.token_mixer.value": f"{_THEIRS}.attn.v",
        f"{_BLOCK}.token_mixer.context": f"{_THEIRS}.attn.s",
        f"{_BLOCK}.token_mixer.mixed_conv.heads.{{h}}": f"{_THEIRS}.attn.local_conv_{{h+1}}",
        f"{_BLOCK}.token_mixer.aggregation.group_mix": f"{_THEIRS}.attn.proj0",
        f"{_BLOCK}.token_mixer.aggregation.norm": f"{_THEIRS}.attn.bn",
        f"{_BLOCK}.token_mixer.aggregation.proj": f"{_THEIRS}.attn.proj1",
        # attention
        f"{_BLOCK}.token_mixer.query": f"{_THEIRS}.attn.q",
        f"{_BLOCK}.token_mixer.key_value": f"{_THEIRS}.attn.kv",
        f"{_BLOCK}.token_mixer.local_conv": f"{_THEIRS}.attn.local_conv",
        # both
        f"{_BLOCK}.token_mixer.proj": f"{_THEIRS}.attn.proj",
        f"{_BLOCK}.layer_scale1.gamma": f"{_THEIRS}.gamma_1",
        f"{_BLOCK}.layer_scale2.gamma": f"{_THEIRS}.gamma_2",
        f"{_BLOCK}.channel_mixer.fc1": f"{_THEIRS}.mlp.fc1",
        f"{_BLOCK}.channel_mixer.conv": f"{_THEIRS}.mlp.dwconv.dwconv",
        f"{_BLOCK}.channel_mixer.fc2": f"{_THEIRS}.mlp.fc2",
        "stages.{i}.norm": "norm{i+1}",
        "head.fc": "head",
    },
    # The detection and segmentation copies of the authors' class call this convolution otherwise.
    aliases={".attn.dw_conv.": ".attn.local_conv."},
)
