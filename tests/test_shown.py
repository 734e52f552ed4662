import pytest

from convattn.shown import brief, reason, shown


@pytest.mark.parametrize(
    "name",
    ["photos/cat 01.jpg", "café", "cafe\u0301", "猫", "نمونه", "می‌خواهم", "👩‍🚀", "[red]x", ":smile:", "a\\nb", "<b>"],
)
def test_letters_of_every_script_and_what_others_take_for_markup_stay(name):
    assert shown(name) == name


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("two\nlines\r", r"two\nlines\r"),
        ("tab\there", r"tab\there"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("caf\udce9", r"caf\xe9"),  # a byte that is no UTF-8
        ("\ud83d", r"\ud83d"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("\u2066a\u2069\u200f", r"\u2066a\u2069\u200f"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        (b"bytes", "b'bytes'"),
    ],
)
def test_what_would_not_be_seen_is_escaped(name, seen):
    assert shown(name) == seen
    assert len(shown(name).splitlines()) == 1
    shown(name).encode()


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ((), {}, ""),
        ("abcde", {}, "a, b, c, d, e"),
        ("abcdef", {}, "a, b, c, d, e and 1 more"),
        (range(2000), {"most": 2}, "0, 1 and 1,998 more"),
        ("abc", {"most": 2, "between": "; "}, "a; b; and 1 more"),
    ],
)
def test_of_many_names_the_first_are_said(names, options, said):
    assert brief(iter(names), **options) == said


def test_an_error_of_somebodys_takes_one_line():
    assert reason(ValueError("two\n  lines")) == "two lines"
    assert reason(ValueError("two\n  lines"), 3) == "two"
    assert reason(KeyError()) == "KeyError"
