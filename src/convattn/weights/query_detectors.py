"""Names of the query detectors' heads in the files of detrex and mmdetection."""

from convattn.weights.rename import NameMap

__all__ = ["DETREX_DINO_NAMES", "MMDET_DINO_NAMES", "SPARSE_RCNN_NAMES"]

_PLACES = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def _layers(encoder: str, decoder: str, own: str, among: str, across: str, ffn: str) -> dict[str, str]:
    """The layers of encoder and decoder, whose parts have the same names in both flavours but for where they stand."""
    ours = "encoder.layers.{i}", "decoder.layers.{i}"
    theirs = f"{encoder}.layers.{{i}}", f"{decoder}.layers.{{i}}"
    rows = {f"{ours[0]}.attention.{place}": f"{theirs[0]}.{own}.{place}" for place in _PLACES}
    rows |= {f"{ours[1]}.cross_attention.{place}": f"{theirs[1]}.{across}.{place}" for place in _PLACES}
    rows |= {
        f"{ours[1]}.self_attention.out_proj": f"{theirs[1]}.{among}.attn.out_proj",
        f"{ours[1]}.self_attention": f"{theirs[1]}.{among}.attn",
    }
    for our, their in zip(ours, theirs, strict=True):
        rows |= {f"{our}.ffn.fc1": f"{their}.{ffn}.layers.0.0", f"{our}.ffn.fc2": f"{their}.{ffn}.layers.1"}
        rows |= {f"{our}.norm{number + 1}": f"{their}.norms.{number}" for number in range(3)}
    return rows


def _mlp(ours: str, theirs: str, layers: int, step: int = 1) -> dict[str, str]:
    """Linear layers of torchvision's `MLP`, which has a ReLU and a dropout behind each; theirs are `step` apart."""
    return {f"{ours}.{3 * layer}": f"{theirs}.{step * layer}" for layer in range(layers)}


DETREX_DINO_NAMES = NameMap(
    modules={
        "projections.{i}.conv": "neck.convs.{i}.conv",
        "projections.{i}.norm": "neck.convs.{i}.norm",
        "extra_projection.conv": "neck.extra_convs.0.conv",
        "extra_projection.norm": "neck.extra_convs.0.norm",
        "level_embedding": "transformer.level_embeds",
        "query_content": "transformer.tgt_embed",
        "memory_proj": "transformer.enc_output",
        "memory_norm": "transformer.enc_output_norm",
        **_layers(
            "transformer.encoder", "transformer.decoder", "attentions.0", "attentions.0", "attentions.1", "ffns.0"
        ),
        **_mlp("decoder.reference_head", "transformer.decoder.ref_point_head.layers", 2),
        "decoder.norm": "transformer.decoder.norm",
        "classifiers.{i}": "class_embed.{i}",
        **_mlp("box_movers.{i}", "bbox_embed.{i}.layers", 3),
        "label_content": "label_enc",
    },
    # The decoder's branches stand in whole files a second time.
    copies={"transformer.decoder.class_embed.": "class_embed.", "transformer.decoder.bbox_embed.": "bbox_embed."},
)

MMDET_DINO_NAMES = NameMap(
    modules={
        "projections.{i}.conv": "neck.convs.{i}.conv",
        "projections.{i}.norm": "neck.convs.{i}.gn",
        "extra_projection.conv": "neck.extra_convs.0.conv",
        "extra_projection.norm": "neck.extra_convs.0.gn",
        "level_embedding": "level_embed",
        "query_content": "query_embedding",
        "memory_proj": "memory_trans_fc",
        "memory_norm": "memory_trans_norm",
        **_layers("encoder", "decoder", "self_attn", "self_attn", "cross_attn", "ffn"),
        **_mlp("decoder.reference_head", "decoder.ref_point_head.layers", 2),
        "decoder.norm": "decoder.norm",
        "classifiers.{i}": "bbox_head.cls_branches.{i}",
        **_mlp("box_movers.{i}", "bbox_head.reg_branches.{i}", 3, step=2),
        "label_content": "dn_query_generator.label_embedding",
    }
)

_STAGE = "stages.{i}"
_THEIRS = "roi_head.bbox_head.{i}"

SPARSE_RCNN_NAMES = NameMap(
    modules={
        "proposal_boxes": "rpn_head.init_proposal_bboxes",
        "proposal_features": "rpn_head.init_proposal_features",
        f"{_STAGE}.attention.out_proj": f"{_THEIRS}.attention.attn.out_proj",
        f"{_STAGE}.attention": f"{_THEIRS}.attention.attn",
        f"{_STAGE}.norm1": f"{_THEIRS}.attention_norm",
        f"{_STAGE}.dynamic.kernels": f"{_THEIRS}.instance_interactive_conv.dynamic_layer",
        f"{_STAGE}.dynamic.norm1": f"{_THEIRS}.instance_interactive_conv.norm_in",
        f"{_STAGE}.dynamic.norm2": f"{_THEIRS}.instance_interactive_conv.norm_out",
        f"{_STAGE}.dynamic.out": f"{_THEIRS}.instance_interactive_conv.fc_layer",
        f"{_STAGE}.dynamic.norm3": f"{_THEIRS}.instance_interactive_conv.fc_norm",
        f"{_STAGE}.norm2": f"{_THEIRS}.instance_interactive_conv_norm",
        f"{_STAGE}.ffn.fc1": f"{_THEIRS}.ffn.layers.0.0",
        f"{_STAGE}.ffn.fc2": f"{_THEIRS}.ffn.layers.1",
        f"{_STAGE}.norm3": f"{_THEIRS}.ffn_norm",
        f"{_STAGE}.class_tower.{{j}}": f"{_THEIRS}.cls_fcs.{{j}}",
        f"{_STAGE}.box_tower.{{j}}": f"{_THEIRS}.reg_fcs.{{j}}",
        f"{_STAGE}.classifier": f"{_THEIRS}.fc_cls",
        f"{_STAGE}.mover": f"{_THEIRS}.fc_reg",
    }
)
