"""The authors' published weights: where each file is, what it expects and what its accuracy was said to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

__all__ = ["OFFICIAL_WEIGHTS", "PUBLISHED_RESULTS", "OfficialWeights", "PublishedResult"]


@dataclass(frozen=True)
class OfficialWeights:
    """One file that the authors of a family released."""

    tag: str  # in timm's words; the model is reached as NAME.TAG
    url: str
    source: str  # where the accuracy below was published
    license: str  # as the authors' repository states it; empty where that has not been looked up
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
    def by_hand(self) -> bool:
        """Whether only a person in a browser can fetch it."""
        return bool(self.file) and not self.mirror

    @property
    def file_name(self) -> str:
        """What the file is called on disk."""
        return self.file or urlsplit(self.url).path.rpartition("/")[2]


@dataclass(frozen=True)
class PublishedResult:
    """An accuracy that the authors published for a model of which they released no file."""

    source: str
    top1: float  # ImageNet-1k validation, percent
    top5: float | None = None
    image_size: int = 224


_SMT_RELEASE = "https://github.com/AFeng-x/SMT/releases/download/v1.0.0/"
_SMT_SOURCE = "README of github.com/AFeng-x/SMT"


def _smt(file: str, tag: str, **fields: Any) -> OfficialWeights:
    return OfficialWeights(tag=tag, url=_SMT_RELEASE + file, source=_SMT_SOURCE, license="MIT", **fields)


_GMF_FOLDERS = "https://connecthkuhk-my.sharepoint.com/:f:/g/personal/rhettgee_connect_hku_hk/"


def _groupmixformer(file: str, folder: str, **fields: Any) -> OfficialWeights:
    """A file in a shared folder that only opens in a browser."""
    source = "README of github.com/AILab-CVC/GroupMixFormer"
    return OfficialWeights(tag="in1k", url=_GMF_FOLDERS + folder, file=file, source=source, license="MIT", **fields)


_NEXTVIT_TAGS = ("in1k", "in1k_384", "ssld_6m_in1k", "ssld_6m_in1k_384")  # 6m: six million images first


def _nextvit(model: str, *drive_ids_and_top1: tuple[str, float]) -> tuple[OfficialWeights, ...]:
    """The four files of a Next-ViT; a browser gets them from the authors, a program gets copies from timm."""
    return tuple(
        OfficialWeights(
            tag=tag,
            url=f"https://drive.google.com/file/d/{drive_id}/view",
            file=f"{model}_{'1n1k6m' if '6m' in tag else 'in1k'}_{384 if '384' in tag else 224}.pth",
            mirror=f"https://huggingface.co/timm/{model}.bd_{tag}/resolve/main/model.safetensors",
            source="README of github.com/bytedance/Next-ViT",
            license="Apache-2.0",
            top1=top1,
            image_size=384 if "384" in tag else 224,
        )
        for tag, (drive_id, top1) in zip(_NEXTVIT_TAGS, drive_ids_and_top1, strict=True)
    )


def _cotnet(drive_id: str, file: str, **fields: Any) -> OfficialWeights:
    """A file on Google Drive, which only a browser gets; the authors state no file names, these are ours."""
    url = f"https://drive.google.com/file/d/{drive_id}/view"
    fields = dict(tag="in1k", source="README of github.com/JDAI-CV/CoTNet", license="") | fields
    return OfficialWeights(url=url, file=file, **fields)


OFFICIAL_WEIGHTS: Mapping[str, tuple[OfficialWeights, ...]] = {
    # model name -> its files, the default first
    "cotnet_50": (_cotnet("1SR5ezIu7LN943zHaUh4mC0ehxBVMqtfv", "cotnet_50.pth", top1=81.3, top5=95.6),),
    "cotnet_101": (_cotnet("11jExbPEg4Eq5PApisZyE5k-1CbRYnsQb", "cotnet_101.pth", top1=82.8, top5=96.2),),
    "cotnext_50": (_cotnet("1j6b5D3xcZ5L_bHiQV0WfqyOieqZLVOCv", "cotnext_50.pth", top1=82.1, top5=95.9),),
    "cotnext_101": (_cotnet("1des5wgkBDUscQAs8IYOmKCKKUA46QLfJ", "cotnext_101.pth", top1=83.2, top5=96.4),),
    "se_cotnetd_50": (_cotnet("1D2b5fr3lxpBpiFcCYBKngmmSgfVHt_56", "se_cotnetd_50.pth", top1=81.6, top5=95.8),),
    "se_cotnetd_101": (_cotnet("1PWIltQYpYZiDrpfZORRQzGzQeXVd2b2f", "se_cotnetd_101.pth", top1=83.2, top5=96.5),),
    # The README lists the first at 224 pixels, with the cost it has at 256, the size its code trains and evaluates at.
    "se_cotnetd_152": (
        _cotnet(
            "1MkMx0a8an3ikt6LZwClIOyabBnMfR91v",
            "se_cotnetd_152.pth",
            top1=84.0,
            top5=97.0,
            image_size=256,
            crop_ratio=0.888,
        ),
        _cotnet(
            "1E43T2jS37gR07p_FVWnjJNkMWeYMXgX9",
            "se_cotnetd_152_320.pth",
            tag="in1k_320",
            top1=84.6,
            top5=97.1,
            image_size=320,
            crop_ratio=0.909,
        ),
    ),
    # The authors link to one folder for both mobile and large.
    "groupmixformer_mobile": (
        _groupmixformer("groupmixformer_miny.pth", "EuH7I7RGUSVHhD46RTECpesBqJVyACRzmBDwBXYWRxcDtg", top1=79.6),
    ),
    "groupmixformer_tiny": (
        _groupmixformer("groupmixformer_tiny.pth", "EnRAzY3LalhGmqx91sEIqrUBLoa5ISS9kOw1ujNcOWSrzA", top1=82.6),
    ),
    "groupmixformer_small": (
        _groupmixformer(
            "groupmixformer_small.pth", "Em7lUESSPaFPowQotlsUi1sBjA9uVldOUi2mbqdF40Uktw", top1=83.4, top5=96.46
        ),
    ),
    "groupmixformer_base": (
        _groupmixformer("groupmixformer_base.pth", "Env1DBxPFZpMifAaVhHpKYgB3O4urE34o4b9_g4Jr-JfQQ", top1=84.7),
    ),
    "groupmixformer_large": (
        _groupmixformer("groupmixformer_large.pth", "EuH7I7RGUSVHhD46RTECpesBqJVyACRzmBDwBXYWRxcDtg", top1=85.0),
    ),
    "nextvit_small": _nextvit(
        "nextvit_small",
        ("1yoJFpMdnwVseEEnSJxF8CIZ_txn1o_aS", 82.5),
        ("1lBBqXFFjWdaPq-zqKyW0uTsToQh43mP_", 83.6),
        ("1b7ChnlT3uG3pTaZjtwYtnAaxAESF0MqK", 84.8),
        ("104jeld9rJq8vwJ-i-RqlzF3mJzXCcQp9", 85.8),
    ),
    "nextvit_base": _nextvit(
        "nextvit_base",
        ("1zaYLlDKMI0OUcYBPoGPXR8lKdrsBq3qp", 83.2),
        ("1D1oZUBHEpWb8uzoRuLs-aFcyjX74zzb3", 84.3),
        ("1qYtex2EZ23TzVqaFlGh14hAxVjfuILWv", 85.1),
        ("17bCu4EbxOUmhgPCP5wlDH_p8m35oTT38", 86.1),
    ),
    "nextvit_large": _nextvit(
        "nextvit_large",
        ("15hiQhAu_YNXboVPsbXpuaflfYkodkYZk", 83.6),
        ("1MMGeXeIqrL8UXYuHEFdMArPDd-8L51Ag", 84.7),
        ("1F5iLING3RzNbuZb4RwL7NLZZmJulKW3N", 85.4),
        ("1ZuLswj2xbUdg_t8TugjSJwDsHuIuMSIC", 86.4),
    ),
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

_DAS, _GMF = "arXiv 2311.12091", "arXiv 2311.15157"

PUBLISHED_RESULTS: Mapping[str, tuple[PublishedResult, ...]] = {
    "groupmixformer_small": (PublishedResult(_GMF, 85.0, image_size=384),),
    "groupmixformer_large": (PublishedResult(_GMF, 86.2, image_size=384),),
    "mobilenetv2_das": (PublishedResult(_DAS, 72.79, 90.87),),
    "resnet18_das": (PublishedResult(_DAS, 72.03, 90.70),),
    "resnet50_das": (PublishedResult(_DAS, 78.04, 94.00),),
    "resnet101_das": (PublishedResult(_DAS, 78.62),),
}
