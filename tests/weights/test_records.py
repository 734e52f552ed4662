"""The table of published weights is consistent with the models it belongs to."""

from urllib.parse import urlsplit

import pytest

import convattn
from convattn.weights.records import OFFICIAL_WEIGHTS, PUBLISHED_RESULTS

ROWS = [(name, weights) for name, rows in OFFICIAL_WEIGHTS.items() for weights in rows]


@pytest.mark.parametrize(("name", "weights"), ROWS, ids=lambda value: getattr(value, "tag", value))
def test_a_record_is_complete(name, weights):
    assert name in convattn.list_models()
    assert urlsplit(weights.url).scheme == "https" and weights.file_name.endswith(".pth")
    assert weights.source
    assert (weights.top1 is None) == (weights.num_classes != 1000)
    assert weights.crop_mode in ("center", "squash") and 0 < weights.crop_ratio <= 1


def test_results_without_a_file_are_of_models_here_and_of_sizes_without_one():
    for name, results in PUBLISHED_RESULTS.items():
        assert name in convattn.list_models()
        sizes = [record.image_size for record in (*OFFICIAL_WEIGHTS.get(name, ()), *results)]
        assert len(set(sizes)) == len(sizes)
        assert all(0 < result.top1 < 100 and result.source for result in results)


def test_tags_and_files_are_distinct():
    assert (
        len({(name, weights.tag) for name, weights in ROWS})
        == len({weights.file_name for _, weights in ROWS})
        == len(ROWS)
    )
