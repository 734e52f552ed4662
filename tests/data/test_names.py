import pickle

import pytest

from convattn.data.names import Names, NumberedClasses


def test_names_are_a_list_of_strings():
    listed = ["ä.png", "", "broken \udcff.png", "b/c.png"]
    names = Names(listed, "top/")
    expected = [f"top/{name}" for name in listed]
    assert list(names) == expected
    assert (names[-1], names[1:3], len(names)) == (expected[-1], expected[1:3], 4)
    assert names == expected
    assert names != expected[:3]
    assert pickle.loads(pickle.dumps(names)) == names
    for index in (4, -5):
        with pytest.raises(IndexError):
            names[index]


def test_a_name_takes_its_bytes_and_eight_more():
    names = Names(f"{number:06d}.png" for number in range(10_000))
    assert len(pickle.dumps(names)) < 10_000 * (10 + 8) + 300


def test_numbered_classes():
    assert NumberedClasses("012") == ["0", "1", "2"]
    assert NumberedClasses("012").are_places
    assert not NumberedClasses("12").are_places
