import unicodedata

import pytest

from convattn.data.known_classes import KnownClasses, LabelError, number_in


@pytest.mark.parametrize(
    ("classes", "label", "place"),
    [
        ("cat dog", "dog", 1),
        ("cat dog", "1", 1),
        ("cat dog", "01.0", 1),
        ("0 1 10 11 2", "10", 2),  # names that are numbers, in the order of characters
        ("0 1 10 11 2", "2.0", 4),
        ("001 002", "2", 1),
        ("1 01 2", "01", 1),
        ("2019 2020", "2020", 1),
        ("0 1 other", "1", 1),  # both readings agree
        ("0 1 other", "2", 2),
        ("7 other", "7", 0),
        ("-1 +1", "+1", 1),
        ("-1 +1", "-1", 0),
        ("cola 4006381333931", "4006381333931", 1),
        ("4006381333931 5449000000996", "1", 1),
    ],
)
def test_a_number_is_a_name_where_names_are_numbers_and_a_place_otherwise(classes, label, place):
    assert KnownClasses(classes.split()).of(label) == place


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        ("cat dog", "fox", r"its label 'fox' is none of the 2 classes"),
        ("cat dog", "2", r"label 2 must be between 0 and 1, for 2 classes"),
        ("1 2", "0", r"label 0 is none of the 2 classes, which are called by numbers"),
        ("2 a b", "2", r"label 2 could be the class '2' or the one with that number, 'b'; write the names"),
        ("crane crane", "crane", r"'crane' is the name of two classes, 0 and 1"),
        ("cat dog", "-1", r"label -1 is below 0"),
        ("1 2", "9" * 20, r"is above 99,999,999, where no class is numbered"),
    ],
)
def test_what_means_no_class_or_two_is_refused(classes, label, message):
    with pytest.raises(LabelError, match=message):
        KnownClasses(classes.split()).of(label)


def test_names_are_compared_in_one_normal_form():
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    for one in forms:
        assert [KnownClasses(["tea", one]).of(other) for other in forms] == [1, 1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("007", 7),
        ("7.", 7),
        ("7.000", 7),
        ("7.0e0", 7),
        ("1e3", 1000),
        ("7.5", None),
        ("seven", None),
        ("٣", None),
    ],
)
def test_whole_numbers_may_be_written_as_floats(text, number):
    assert number_in(text) == number


@pytest.mark.parametrize("text", ["9" * 5000, "1e999", "2147483646", "-3", "-1.0"])
def test_numbers_that_no_class_has(text):
    with pytest.raises(LabelError, match=r"^label .*(is above|is below)"):
        number_in(text)
