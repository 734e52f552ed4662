"""CoTNet's tables (arXiv 2107.12292)."""

from dataclasses import replace
from typing import Any

from convattn.ablation.design import Comparison, Design

__all__ = ["PRESETS"]

_PAPER = "CoTNet, arXiv 2107.12292"
_TOP1 = "top-1 on ImageNet-1k"


def _row(name: str, parameters: int, gmacs: float, published: float | None = None, **options: Any) -> Design:
    return Design(name, "cotnet_50", options, parameters=parameters, gmacs=gmacs, published=published)


def _from(stage: int, parameters: int, gmacs: float) -> Design:
    mixers = ("conv",) * (stage - 1) + ("cot",) * (5 - stage)
    name = {1: "stages 1 to 4", 2: "stages 2 to 4", 3: "stages 3 and 4", 4: "stage 4"}[stage]
    return _row(f"CoT in {name}", parameters, gmacs, mixers=mixers)


def _se(name: str, parameters: int, gmacs: float, *mixers: str) -> Design:
    return Design(name, "se_cotnetd_50", {"mixers": mixers} if mixers else {}, parameters=parameters, gmacs=gmacs)


PRESETS = {
    "cotnet_fusion": Comparison(
        "CoTNet: static and dynamic context",
        (
            Design("attention", "cotnet_50", role="base", parameters=22_222_416, gmacs=3.2429, published=79.2),
            _row("static alone", 17_069_096, 2.7019, 77.1, fusion="static"),
            _row("dynamic alone", 20_322_992, 3.2410, 78.5, fusion="dynamic"),
            _row("sum", 20_322_992, 3.2410, 78.7, fusion="sum"),
        ),
        f"{_PAPER}, ablation of the block",
        _TOP1,
    ),
    "cotnet_stages": Comparison(
        "CoTNet: stages with CoT blocks",
        (
            Design("none", "cotnet_50", {"mixers": ("conv",) * 4}, role="base", parameters=25_557_032, gmacs=4.0892),
            _from(4, 23_461_736, 3.9297),
            _from(3, 22_423_208, 3.6102),
            _from(2, 22_253_160, 3.3988),
            _from(1, 22_222_416, 3.2429),
        ),
        f"{_PAPER}, replacement by stage",
        note="The article has rising accuracies and calls parameters nearly constant; here they fall by 13 %.",
    ),
    "cotnet_se": Comparison(
        "SE-CoTNetD: CoT and squeeze-and-excitation by stage",
        (
            replace(_se("SE everywhere", 26_217_896, 4.3680, "se", "se", "se", "se"), role="base"),
            _se("CoT in stage 4", 23_726_696, 4.2081, "se", "se", "se", "cot"),
            _se("SE-CoTNetD-50", 23_107_784, 4.0483),
            _se("CoT in stages 3 and 4", 22_488_872, 3.8885, "se", "se", "cot", "cot"),
            _se("CoT everywhere", 22_241_648, 3.5210, "cot", "cot", "cot", "cot"),
        ),
        f"{_PAPER}, SE-CoTNetD",
    ),
    "cotnet_kernel": Comparison(
        "CoTNet: kernel of the context",
        (
            Design("3", "cotnet_50", role="base", parameters=22_222_416, gmacs=3.2429),
            _row("5", 28_532_432, 4.2926, kernel_size=5),
        ),
        "ours",
    ),
}
