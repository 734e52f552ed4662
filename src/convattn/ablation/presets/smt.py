"""SMT's comparisons (arXiv 2307.08579). The numbers of the article's tables are not at hand; counts are ours."""

from dataclasses import replace

from convattn.ablation.design import Comparison, Design

__all__ = ["PRESETS"]

_SOURCE = "SMT, arXiv 2307.08579, ablations"
_COUNT, _GMACS = 11_506_536, 2.4613
_EARLY = ("modulation", "modulation")
_BASE = Design("base", "smt_tiny", role="base", parameters=_COUNT, gmacs=_GMACS)


def _row(name: str, parameters: int, gmacs: float, **options: object) -> Design:
    return Design(name, "smt_tiny", options, parameters=parameters, gmacs=gmacs)


PRESETS = {
    "smt_stacking": Comparison(
        "SMT: what stage 3 is stacked of",
        (
            _BASE,
            _row("half modulation, half attention", _COUNT, _GMACS, stacking="half"),
            _row("modulation alone", 11_815_784, 2.4420, stacking="modulation"),
            _row("attention alone", 11_197_288, 2.4805, stacking="attention"),
            _row("modulation in stage 4 too", 11_792_232, 2.4727, stacking=(*_EARLY, "alternate", "modulation")),
            _row(
                "attention in stages 1 and 2",
                11_447_912,
                5.2181,
                stacking=("attention", "attention", "alternate", "attention"),
                attention_heads=(2, 4, 8, 16),
            ),
        ),
        _SOURCE,
        note="The base alternates modulation and attention.",
    ),
    "smt_heads": Comparison(
        "SMT: heads of the mixed convolution",
        (
            _BASE,
            _row("1 head", 11_453_032, 2.4308, num_heads=1),
            _row("2 heads", 11_467_112, 2.4388, num_heads=2),
            _row("8 heads", 11_630_440, 2.5319, num_heads=8),
            _row("one kernel in all heads", 11_461_480, 2.4356, kernel_growth=0),
            Design("6 heads", missing="widths 64, 128 and 256 are no multiples of 6"),
        ),
        _SOURCE,
        note="The base has 4 heads with kernels 3, 5, 7, 9.",
    ),
    "smt_aggregation": Comparison(
        "SMT: scale-aware aggregation",
        (
            _BASE,
            _row("no aggregation", 10_879_208, 2.2493, aggregation=False),
            _row("width 1", 11_193_576, 2.3553, expansion_ratio=1),
            _row("width 4", 12_132_456, 2.6732, expansion_ratio=4),
            _row("one 1x1", 11_183_720, 2.3521, aggregation="one_1x1"),
            _row("two 1x1", 11_491_048, 2.4548, aggregation="two_1x1"),
            _row("ungrouped", 12_101_480, 2.6604, aggregation="ungrouped"),
            _row("inverted bottleneck", 12_135_272, 2.6748, aggregation="inverted_bottleneck"),
        ),
        _SOURCE,
        note="The base widens twice inside. Norms and activations of the last four are ours.",
    ),
    "smt_components": Comparison(
        "SMT: component by component",
        (
            replace(
                _row("one 3x3", 10_570_984, 2.0936, num_heads=1, aggregation=False, stacking="modulation"),
                role="base",
                note="no aggregation, no attention in stage 3",
            ),
            _row("+ mixed convolution", 10_648_808, 2.1257, aggregation=False, stacking="modulation"),
            _row("+ aggregation", 11_815_784, 2.4420, stacking="modulation"),
            _row("+ attention (SMT)", _COUNT, _GMACS),
        ),
        _SOURCE,
    ),
}
