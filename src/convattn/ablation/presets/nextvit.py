"""Next-ViT's tables 1, 2, 7, 8, 9 (arXiv 2207.05501). The numbers of the article's tables are not at hand."""

from typing import Any

from convattn.ablation.design import Comparison, Design

__all__ = ["PRESETS"]

_PAPER = "Next-ViT, arXiv 2207.05501"
_COUNT, _GMACS = 31_763_368, 5.7944
_BASE = Design("base", "nextvit_small", role="base", parameters=_COUNT, gmacs=_GMACS)


def _row(name: str, parameters: int, gmacs: float, note: str = "", **options: Any) -> Design:
    return Design(name, "nextvit_small", options, parameters=parameters, gmacs=gmacs, note=note)


def _patterns(**rows: tuple[int, float]) -> tuple[Design, ...]:
    return tuple(_row(pattern, *costs, stage_pattern=pattern) for pattern, costs in rows.items())


def _hybrid_stage(convs: int, depth: int, parameters: int, gmacs: float) -> Design:
    options: dict[str, Any] = {"convs_per_transformer": (3, 3, convs, 2), "depths": (3, 4, depth, 3)}
    return _row(f"{convs} of {convs + 1} blocks convolve", parameters, gmacs, **options)


PRESETS = {
    "nextvit_strategy": Comparison(
        "Next-ViT: where transformer blocks stand",
        (
            _BASE,
            *_patterns(
                CCCC=(27_307_688, 5.3921),
                CCCT=(36_772_520, 5.8538),
                CCTT=(44_658_088, 7.0178),
                CTTT=(45_361_704, 7.3915),
                TTTT=(45_465_768, 7.6127),
                CCCH=(30_108_328, 5.5205),
                CCHH=(31_606_184, 5.7263),
            ),
        ),
        f"{_PAPER}, table 1",
        note="The base is CHHH. A stage T is wider throughout: the rows with T are not matched in parameters.",
    ),
    "nextvit_stage3": Comparison(
        "Next-ViT: convolution blocks for one transformer block in stage 3",
        (
            _BASE,
            _hybrid_stage(1, 10, 34_158_760, 6.1537),
            _hybrid_stage(2, 9, 31_415_976, 5.6902),
            _hybrid_stage(9, 10, 30_964_904, 5.6747),
        ),
        f"{_PAPER}, table 2",
        note="The base has 4. A hybrid stage's depth is a multiple of these and 1, so 2 has one block less.",
    ),
    "nextvit_depth": Comparison(
        "Next-ViT: repeats of the hybrid unit",
        (
            _BASE,
            Design("4 units", "nextvit_base", parameters=44_818_856, gmacs=8.2738),
            Design("6 units", "nextvit_large", parameters=57_874_344, gmacs=10.7532),
        ),
        f"{_PAPER}, table 2",
        note="The base has 2.",
    ),
    "nextvit_conv_block": Comparison(
        "Next-ViT: the convolution block",
        (
            _BASE,
            _row("bottleneck", 15_330_952, 2.4635, conv_block="bottleneck"),
            _row("ConvNeXt", 32_953_096, 5.7712, conv_block="convnext"),
            _row("transformer", 42_702_472, 14.1374, conv_block="transformer"),
            Design("two blocks in MetaFormer's style", missing="the article does not name their mixers"),
        ),
        f"{_PAPER}, table 7",
        note="The article matches these in latency, which these rows are not.",
    ),
    "nextvit_mix_ratio": Comparison(
        "Next-ViT: the share of channels that attend",
        (
            _BASE,
            _row("0", 31_026_856, 5.8455, mix_ratio=0.0),
            _row("0.25", 29_942_312, 5.6928, mix_ratio=0.25),
            _row("0.5", 30_493_864, 5.7143, mix_ratio=0.5),
            _row("1", 35_290_280, 6.1258, mix_ratio=1.0),
        ),
        f"{_PAPER}, table 8",
        note="The base has 0.75.",
    ),
    "nextvit_norm": Comparison(
        "Next-ViT: norm and activation",
        (
            _BASE,
            _row("batch norm, GELU", _COUNT, _GMACS, norm="bn", act="gelu"),
            _row("layer norm, ReLU", _COUNT, _GMACS, norm="ln", act="relu"),
            _row("layer norm, GELU", _COUNT, _GMACS, norm="ln", act="gelu"),
        ),
        f"{_PAPER}, table 9",
        note="The base has batch norm and ReLU.",
    ),
    "nextvit_token_pool": Comparison(
        "Next-ViT: how keys and values are pooled",
        (
            _BASE,
            _row("1d, every token", _COUNT, _GMACS, token_pool="1d_full"),
            _row("2d", _COUNT, _GMACS, token_pool="2d"),
        ),
        "ours",
        note="The authors' pool leaves the last tokens out where their number is no multiple.",
    ),
}
