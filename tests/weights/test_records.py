"""The table of published weights is consistent with the models it belongs to."""

from urllib.parse import urlsplit

import pytest

import convattn
from convattn.weights.records import OFFICIAL_WEIGHTS

ROWS = [(name, weights) for name, rows in OFFICIAL_WEIGHTS.items() for weights in rows]


@pytest.mark.parametrize(("name", "weights"), ROWS, ids=lambda value: getattr(value, "tag", value))
def test_a_record_is_complete(name, weights):
    assert name in convattn.list_models()
    assert urlsplit(weights.url).scheme == "https" and weights.file_name.endswith(".pth")
    assert weights.source
    assert (weights.top1 is None) == (weights.num_classes != 1000)
    assert weights.crop_mode in ("center", "squash") and 0 < weights.crop_ratio <= 1


def test_tags_and_files_are_distinct():
    assert (
        len({(name, weights.tag) for name, weights in ROWS})
        == len({weights.file_name for _, weights in ROWS})
        == len(ROWS)
    )
