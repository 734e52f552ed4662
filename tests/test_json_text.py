"""JSON without words that are not JSON's."""

import json
import math

import pytest

from convattn.json_text import json_text


def test_what_is_not_finite_is_null_however_deep():
    value = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "NaN", "d": None, "e": 2**70, "f": True}
    found = json.loads(json_text(value, indent=2), parse_constant=pytest.fail)
    assert found == {"a": [1.5, None, [None, {"b": None}]], "c": "NaN", "d": None, "e": 2**70, "f": True}
