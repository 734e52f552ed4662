"""GroupMixFormer's tables 5 to 9 (arXiv 2311.15157)."""

from typing import Any

from convattn.ablation.design import Comparison, Design, plug_in

__all__ = ["PRESETS"]

_PAPER = "GroupMixFormer, arXiv 2311.15157"
_TOP1 = "top-1 on ImageNet-1k"
_WINDOW = {"head_dim": 20, "window_size": 7}
_BASE = Design("base", "groupmixformer_tiny", role="base", parameters=10_949_152, gmacs=3.6858, published=82.5)


def _row(name: str, parameters: int, gmacs: float, published: float | None = None, **options: Any) -> Design:
    return Design(name, "groupmixformer_tiny", options, parameters=parameters, gmacs=gmacs, published=published)


def _one(kernel: int, place: int, parameters: int, gmacs: float) -> Design:
    kinds = ["off", "off", "off", "off", "dwconv"]
    kinds[place] = "dwconv"
    return _row(f"one aggregator of {kernel} beside the branch", parameters, gmacs, aggregators=tuple(kinds))


def _inner(kind: str) -> Design:
    return _row(f"{kind} in segments 1 to 3", 10_776_832, 3.4894, aggregators=("identity", kind, kind, kind, "dwconv"))


def _plugged(model: str, title: str, added: int, gmacs: float, base: int, base_gmacs: float) -> Comparison:
    return Comparison(
        f"GroupMixFormer: aggregators on q, k and v of {title}",
        (
            Design("base", model, role="base", parameters=base, gmacs=base_gmacs),
            Design(
                "with aggregators",
                model,
                plug_ins=(plug_in("attach", "group_aggregator", "qkv"),),
                parameters=base + added,
                gmacs=round(base_gmacs + gmacs, 4),
            ),
            Design(
                "PVT-Small (v1)", missing="timm has no PVT of version 1; published are 79.8 without and 80.6 with them"
            ),
        ),
        f"{_PAPER}, table 9",
    )


PRESETS = {
    "groupmixformer_components": Comparison(
        "GroupMixFormer: aggregators before and beside attention",
        (
            _BASE,
            _row("plain self-attention", 10_671_040, 3.4826, 80.9, aggregators="off"),
            _row("identity branches", 10_753_504, 3.4784, aggregators="identity"),
            _row("branch beside alone", 10_769_920, 3.4894, 81.3, aggregators=("off",) * 4 + ("dwconv",)),
            _row(
                "aggregators before alone",
                10_850_272,
                3.6791,
                81.9,
                aggregators=("identity", "dwconv", "dwconv", "dwconv", "off"),
            ),
            _one(3, 1, 10_812_960, 3.5322),
            _one(5, 2, 10_826_784, 3.5516),
            _one(7, 3, 10_847_520, 3.5807),
        ),
        f"{_PAPER}, table 5",
        _TOP1,
        note="Identity branches keep norm and activation: they cost what aggregators do and gather nothing.",
    ),
    "groupmixformer_kernels": Comparison(
        "GroupMixFormer: kernels of the aggregators",
        (
            _BASE,
            _row("3 everywhere", 10_900_768, 3.6179, kernels=(3, 3, 3)),
            _row("5 everywhere", 10_942_240, 3.6761, kernels=(5, 5, 5)),
            _row("7 everywhere", 11_004_448, 3.7635, kernels=(7, 7, 7)),
            _row("5, 7, 9", 11_011_360, 3.7732, kernels=(5, 7, 9)),
            _row("large to small", 10_962_976, 3.7508, kernels=((5, 7, 9),) * 2 + ((3, 5, 7),) * 2),
            _row("small to large", 10_997_536, 3.7082, kernels=((3, 5, 7),) * 2 + ((5, 7, 9),) * 2),
        ),
        f"{_PAPER}, tables 5 and 8",
        _TOP1,
        note="The base has kernels 3, 5, 7.",
    ),
    "groupmixformer_aggregators": Comparison(
        "GroupMixFormer: kinds of aggregators",
        (
            _BASE,
            *(_row(f"{kind} everywhere", 10_753_504, 3.4784, aggregators=kind) for kind in ("max", "avg", "min")),
            *(
                _row(f"{kind} and 1x1 everywhere", 10_854_112, 3.5742, aggregators=kind, pool_pointwise=True)
                for kind in ("max", "avg", "min")
            ),
            *(_inner(kind) for kind in ("max", "avg", "min")),
        ),
        f"{_PAPER}, table 6",
        _TOP1,
        note="Widths of the 1x1 are ours.",
    ),
    "groupmixformer_attention": Comparison(
        "GroupMixFormer: other attentions in its place",
        (
            _BASE,
            _row("window attention", 10_573_624, 3.5537, attention="window_mhsa", attention_options=_WINDOW),
            _row(
                "spatial reduction 2",
                13_903_680,
                5.0351,
                attention="sr_mhsa",
                attention_options={"head_dim": 20, "sr_ratio": 2},
            ),
            _row(
                "spatial reduction 8, 4, 2, 1",
                15_744_000,
                3.3586,
                attention="sr_mhsa",
                attention_options=tuple({"head_dim": 20, "sr_ratio": ratio} for ratio in (8, 4, 2, 1)),
            ),
            _row(
                "window attention, every second shifted",
                10_573_624,
                3.5537,
                attention="window_mhsa",
                attention_options=((_WINDOW, {**_WINDOW, "shift": True}),) * 4,
            ),
        ),
        f"{_PAPER}, table 7",
        _TOP1,
        note="Spatial reduction 2 in all stages costs more than the base: the row is not matched.",
    ),
    "groupmixformer_placement": Comparison(
        "GroupMixFormer: convolutions in front of plain attention",
        (_BASE, _row("convolutions before", 10_926_520, 3.5744, 81.5, placement="before")),
        f"{_PAPER}, text",
        _TOP1,
        note="Which convolutions stand in front is ours.",
    ),
    "groupmixformer_in_swin": _plugged(
        "timm:swin_tiny_patch4_window7_224", "Swin-T", 504_816, 0.2841, 28_288_354, 4.4906
    ),
    "groupmixformer_in_pvt": _plugged("timm:pvt_v2_b1", "PVTv2-B1", 381_952, 0.0564, 14_009_000, 2.1084),
}
