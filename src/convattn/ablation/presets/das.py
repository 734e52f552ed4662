"""DAS's tables (arXiv 2311.12091). Published accuracies are on Stanford Dogs."""

from dataclasses import replace
from typing import Any

from convattn.ablation.design import Comparison, Design, plug_in

__all__ = ["PRESETS"]

_PAPER = "DAS, arXiv 2311.12091"
_DOGS = "top-1 on Stanford Dogs"
_COUNTS = {"resnet18_das": (12_438_830, 1.9354), "resnet50_das": (36_903_598, 5.8144)}
_PLAIN = {"timm:resnet18": (11_689_512, 1.8141), "timm:resnet50": (25_557_032, 4.0892)}

_FORMS: dict[str, tuple[float | None, dict[str, tuple[int, float]]]] = {
    # row -> published accuracy, costs by network
    "a": (65.00, {"resnet18_das": (12_404_080, 1.9236), "resnet50_das": (36_771_120, 5.7604)}),
    "b": (65.21, {"resnet18_das": (11_910_284, 1.8489), "resnet50_das": (28_944_652, 4.5998)}),
    "d": (65.338, {"resnet18_das": (15_058_260, 2.3679), "resnet50_das": (76_632_980, 11.8537)}),
    "e": (65.291, {"resnet18_das": (12_048_232, 1.8688), "resnet50_das": (31_169_832, 4.9248)}),
    "f": (66.107, {"resnet18_das": (11_840_278, 1.8382), "resnet50_das": (27_829_782, 4.4332)}),
    "g": (None, {"resnet18_das": (15_056_340, 2.3679), "resnet50_das": (76_625_300, 11.8537)}),
    "h": (None, _COUNTS),
}

_STAGES = {(4,): (12_242_197, 34_055_294), (3, 4): (12_387_993, 36_205_117), (2, 3, 4): (12_427_503, 36_757_802)}
_ALPHAS = {0.01: 11_735_007, 0.05: 11_879_678, 0.1: 12_067_342, 0.3: 12_808_398, 0.5: 13_557_620, 1.0: 15_415_060}
_RIVALS = {  # mixer -> parameters and 10⁹ multiply-adds that it adds to a ResNet-18
    "das": (749_318, 0.1213),
    "bam": (91_504, 0.0069),
    "gc": (89_324, 0.0008),
    "coord": (47_712, 0.0007),
    "se": (45_056, 0.0000),
    "cbam": (43_920, 0.0005),
    "triplet": (1_200, 0.0032),
    "eca": (18, 0.0000),
}


def _base(network: str, published: float | None = None) -> Design:
    parameters, gmacs = _COUNTS[network]
    return Design("base", network, role="base", parameters=parameters, gmacs=gmacs, published=published)


def _row(name: str, network: str, parameters: int, gmacs: float | None = None, **options: Any) -> Design:
    return Design(name, network, options, parameters=parameters, gmacs=gmacs)


def _forms(network: str) -> Comparison:
    rows = (
        replace(_row(f"form {form}", network, *costs[network], form=form), published=published)
        for form, (published, costs) in _FORMS.items()
    )
    return Comparison(
        f"DAS: forms of the gate in {network}",
        (_base(network, 66.41), *rows),
        f"{_PAPER}, rows a to h",
        _DOGS,
        note="The base is c. The text leaves some layers of d, e, g and h open; these are our reading. It says that e "
        "costs more than c, which it does not here.",
    )


def _stages(network: str, which: int) -> Comparison:
    rows = (
        _row(f"stages {', '.join(map(str, stages))}", network, counts[which], gated_stages=stages)
        for stages, counts in _STAGES.items()
    )
    every = ((13_188_148, 2.0567), (66_598_884, 10.9601))[which]
    blocks = _row("behind every block", network, *every, where="blocks")
    return Comparison(f"DAS: where gates stand in {network}", (_base(network), *rows, blocks), _PAPER)


def _norms() -> tuple[Design, ...]:
    network, count = "resnet18_das", _COUNTS["resnet18_das"][0]
    kinds = ("in", "ln", "bn", "gn1", "none")
    pairs = [(first, second) for first in kinds for second in kinds if (first, second) != ("in", "ln")]
    return tuple(
        _row(f"{first}, {second}", network, 12_436_910 if second == "none" else count, norm1=first, norm2=second)
        for first, second in pairs
    )


def _rival(mixer: str, parameters: int, gmacs: float) -> Design:
    count, macs = _PLAIN["timm:resnet18"]
    return Design(
        mixer,
        "timm:resnet18",
        plug_ins=(plug_in("attach", mixer, "stages"),),
        parameters=count + parameters,
        gmacs=round(macs + gmacs, 4),
    )


def _plain(network: str) -> Design:
    return Design("none", network, role="base", parameters=_PLAIN[network][0], gmacs=_PLAIN[network][1])


PRESETS = {
    "das_forms": _forms("resnet18_das"),
    "das_forms_50": _forms("resnet50_das"),
    "das_stages": _stages("resnet18_das", 0),
    "das_stages_50": _stages("resnet50_das", 1),
    "das_alpha": Comparison(
        "DAS: width of the context",
        (
            _base("resnet18_das"),
            *(_row(f"alpha {alpha:g}", "resnet18_das", count, alpha=alpha) for alpha, count in _ALPHAS.items()),
        ),
        f"{_PAPER}, figure 3",
        note="The base has alpha 0.2.",
    ),
    "das_norms": Comparison(
        "DAS: norms of the gate",
        (_base("resnet18_das"), *_norms()),
        f"{_PAPER}, table 5",
        note="The base has in, ln: the first behind the compression, the second in front of the sigmoid.",
    ),
    "das_version": Comparison(
        "DAS: sampling with and without masks",
        (_base("resnet18_das"), _row("version 1", "resnet18_das", 12_423_404, 1.9295, modulated=False)),
        _PAPER,
    ),
    "das_rivals": Comparison(
        "DAS and its rivals behind the stages of ResNet-18",
        (_plain("timm:resnet18"), *(_rival(mixer, *costs) for mixer, costs in _RIVALS.items())),
        _PAPER,
        note="The rivals' authors put them elsewhere; se_in_place has squeeze-and-excitation in its own position.",
    ),
    "se_in_place": Comparison(
        "Squeeze-and-excitation in its own position and behind the stages of ResNet-50",
        (
            _plain("timm:resnet50"),
            Design(
                "inside the branch",
                "timm:resnet50",
                plug_ins=(plug_in("attach", "se", "*.bn3"),),
                parameters=28_088_024,
                note="SE-ResNet-50's published 28.09 million parameters",
            ),
            Design("behind the stages", "timm:resnet50", plug_ins=(plug_in("attach", "se", "stages"),)),
        ),
        "SE, arXiv 1709.01507",
    ),
}
