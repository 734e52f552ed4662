"""What each model costs at its own image size, so that a list of all of them need not build any.

The tests count every row anew.
"""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["COSTS", "OTHER_COSTS", "Cost", "cost_of"]


class Cost(NamedTuple):
    """One forward pass of one image of the size that the model's weights expect."""

    parameters: int
    macs: int  # multiply-adds, those inside attention and custom kernels included


COSTS: Mapping[str, Cost] = {
    "cotnet_nano": Cost(1_609_003, 17_939_584),
    "cotnet_50": Cost(22_222_416, 3_242_870_272),
    "cotnet_101": Cost(38_272_048, 6_050_032_128),
    "cotnext_50": Cost(30_046_276, 4_254_957_312),
    "cotnext_101": Cost(53_346_068, 8_072_871_168),
    "se_cotnetd_50": Cost(23_107_784, 4_048_278_016),
    "se_cotnetd_101": Cost(40_912_392, 8_435_660_288),
    "se_cotnetd_152": Cost(55_783_688, 16_845_500_416),
    "groupmixformer_nano": Cost(1_192_144, 25_837_024),
    "groupmixformer_mobile": Cost(5_733_120, 1_333_196_768),
    "groupmixformer_tiny": Cost(10_949_152, 3_685_821_256),
    "groupmixformer_small": Cost(22_421_320, 5_133_120_960),
    "groupmixformer_base": Cost(45_827_272, 17_428_041_088),
    "groupmixformer_large": Cost(71_833_648, 38_067_620_776),
    "hybrid": Cost(14_297_832, 2_295_956_480),
    "nextvit_nano": Cost(997_160, 17_724_416),
    "nextvit_small": Cost(31_763_368, 5_794_420_224),
    "nextvit_base": Cost(44_818_856, 8_273_817_088),
    "nextvit_large": Cost(57_874_344, 10_753_213_952),
    "nextvit_nano_extra_norm": Cost(997_608, 17_724_416),
    "nextvit_small_extra_norm": Cost(31_765_096, 5_794_420_224),
    "nextvit_base_extra_norm": Cost(44_820_584, 8_273_817_088),
    "nextvit_large_extra_norm": Cost(57_876_072, 10_753_213_952),
    "mobilenetv2_das": Cost(3_832_193, 348_094_356),
    "resnet18_das": Cost(12_438_830, 1_935_363_142),
    "resnet34_das": Cost(22_546_990, 3_785_051_206),
    "resnet50_das": Cost(36_903_598, 5_814_362_683),
    "resnet101_das": Cost(55_895_726, 9_526_583_867),
    "resnet18_das_cifar": Cost(12_431_150, 595_534_432),
    "resnet50_das_cifar": Cost(36_895_918, 1_863_180_976),
    "smt_nano": Cost(1_106_192, 16_622_720),
    "smt_tiny": Cost(11_506_536, 2_461_268_480),
    "smt_small": Cost(22_550_952, 4_838_833_152),
    "smt_base": Cost(32_037_352, 7_965_901_824),
    "smt_large": Cost(80_620_264, 17_907_127_296),
}

# Where published weights, or a published accuracy, are of another size or other classes than the model's own.
OTHER_COSTS: Mapping[tuple[str, int, int], Cost] = {
    # (model, height and width in pixels, classes)
    ("groupmixformer_large", 384, 1000): Cost(71_833_648, 111_871_261_056),
    ("groupmixformer_small", 384, 1000): Cost(22_421_320, 15_084_469_760),
    ("nextvit_base", 384, 1000): Cost(44_818_856, 24_586_067_968),
    ("nextvit_large", 384, 1000): Cost(57_874_344, 31_956_508_672),
    ("nextvit_small", 384, 1000): Cost(31_763_368, 17_215_627_264),
    ("se_cotnetd_152", 320, 1000): Cost(55_783_688, 26_317_907_968),
    ("smt_large", 224, 21841): Cost(96_646_993, 17_923_133_184),
    ("smt_large", 384, 1000): Cost(80_620_264, 55_060_985_856),
}


def cost_of(name: str, image_size: int, num_classes: int = 1000) -> Cost:
    """What a model costs with one of its published weights; with its own where there are none."""
    return OTHER_COSTS.get((name, image_size, num_classes), COSTS[name])
