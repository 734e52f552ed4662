"""The authors' published weights: where each file is, what it expects and what its accuracy was said to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

__all__ = ["OFFICIAL_WEIGHTS", "OfficialWeights"]


@dataclass(frozen=True)
class OfficialWeights:
    """One file that the authors of a family released."""

    tag: str  # in timm's words; the model is reached as NAME.TAG
    url: str
    source: str  # where the accuracy below was published
    license: str
    top1: float | None = None  # ImageNet-1k validation, percent, as published
    top5: float | None = None
    image_size: int = 224
    num_classes: int = 1000
    crop_ratio: float = 0.875
    crop_mode: str = "center"  # "squash": resize to the square without keeping the aspect ratio, no crop
    sha256: str | None = None  # where a digest is known
    file: str = ""  # its name, where `url` is a page about it and does not end in the name
    mirror: str = ""  # a copy that a program can fetch, where `url` is a page for people

    @property
    def file_name(self) -> str:
        """What the file is called on disk."""
        return self.file or urlsplit(self.url).path.rpartition("/")[2]


_SMT_RELEASE = "https://github.com/AFeng-x/SMT/releases/download/v1.0.0/"
_SMT_SOURCE = "README of github.com/AFeng-x/SMT"


def _smt(file: str, tag: str, **fields: Any) -> OfficialWeights:
    return OfficialWeights(tag=tag, url=_SMT_RELEASE + file, source=_SMT_SOURCE, license="MIT", **fields)


OFFICIAL_WEIGHTS: Mapping[str, tuple[OfficialWeights, ...]] = {
    # model name -> its files, the default first
    "smt_tiny": (_smt("smt_tiny.pth", "in1k", top1=82.2, top5=96.0),),
    "smt_small": (_smt("smt_small.pth", "in1k", top1=83.7, top5=96.5),),
    "smt_base": (_smt("smt_base.pth", "in1k", top1=84.3, top5=96.9),),
    "smt_large": (
        _smt("smt_large_22k_224_ft.pth", "in22k_ft_in1k", top1=87.1, top5=98.1),
        _smt(
            "smt_large_22k_384_ft.pth",
            "in22k_ft_in1k_384",
            top1=88.1,
            top5=98.4,
            image_size=384,
            crop_ratio=1.0,
            crop_mode="squash",
        ),
        _smt("smt_large_22k.pth", "in22k", num_classes=21841),
    ),
}
