import hashlib

import pytest
import torch
from timm.data import ImageNetInfo

from convattn.weights.head_rows import are_imagenet, imagenet_22k_rows, read_head_rows, select_head_rows


def test_rows_are_read_a_line_each(tmp_path):
    (tmp_path / "rows.txt").write_text("3\n\n 0\n3\n")
    assert read_head_rows(tmp_path / "rows.txt") == [3, 0, 3]
    assert read_head_rows("imagenet-22k") == imagenet_22k_rows()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n-2\n", r"rows.txt, line 2: '-2' must be the number of an output, 0 or more"),
        ("1\nn01440764\n", r"rows.txt, line 2: 'n01440764' must be the number"),
        ("\n", r"rows.txt: no row; write one line for each class"),
    ],
)
def test_what_is_no_row_is_named(tmp_path, text, message):
    (tmp_path / "rows.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_head_rows(tmp_path / "rows.txt")
    with pytest.raises(ValueError, match=r"gone.txt: could not be read as rows of a classifier"):
        read_head_rows(tmp_path / "gone.txt")


def test_every_row_is_that_of_the_authors_list():
    """Their list of 1,000 numbers was compared once with the rule below; its digest keeps each of them."""
    rows = imagenet_22k_rows()
    digest = hashlib.sha256("\n".join(map(str, rows)).encode()).hexdigest()
    assert digest == "4fff66d6f337db6dd0b41d1b6c863e617f9400d37892df630eecfcfa50131aab"
    # Another way to them than ours: places in another list, one further from class 718 on and two from 982 on.
    place = {synset: row for row, synset in enumerate(ImageNetInfo("imagenet-22k").label_names())}
    synsets = ImageNetInfo("imagenet-1k").label_names()
    far = [label >= 718 for label in range(1000)], [label >= 982 for label in range(1000)]
    assert [
        n
        for n, synset in enumerate(synsets)
        if place.get(synset, 5564) + (far[0][n] + far[1][n]) * (n != 850) != rows[n]
    ] == []
    assert (rows[:3], rows[850]) == ([359, 368, 460], 5564)


def test_the_rows_follow_the_classes():
    rows, synsets = imagenet_22k_rows(), ImageNetInfo("imagenet-1k").label_names()
    assert imagenet_22k_rows(synsets[::-1]) == rows[::-1]
    assert imagenet_22k_rows(["n04399382", "n01440764"]) == [5564, 359]
    assert are_imagenet(synsets[:3]) and not are_imagenet([*synsets[:3], "cat"]) and not are_imagenet([])


def test_the_chosen_outputs_are_those_of_the_large_head():
    torch.manual_seed(0)
    large = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 21841))
    small = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1000))
    state = large.state_dict()
    chosen = select_head_rows(state, imagenet_22k_rows(), "1")
    small.load_state_dict(chosen)
    images = torch.randn(3, 4)
    torch.testing.assert_close(small(images), large(images)[:, imagenet_22k_rows()])
    assert chosen["0.weight"] is state["0.weight"]
    assert len(state["1.weight"]) == 21841  # as it was


def test_two_classifiers_and_one_without_bias():
    state = {"a.weight": torch.arange(6.0).view(3, 2), "b.weight": torch.arange(3.0)[:, None], "b.bias": torch.ones(3)}
    chosen = select_head_rows(state, [2, 0], ("a", "b"))
    assert chosen["a.weight"].tolist() == [[4, 5], [0, 1]]
    assert (chosen["b.weight"].tolist(), len(chosen["b.bias"])) == ([[2], [0]], 2)


@pytest.mark.parametrize(("rows", "message"), [([0, 3], r"row 3 must be between 0 and 2"), ([-1], r"row -1 must be")])
def test_a_row_or_a_layer_that_is_not_there_is_named(rows, message):
    state = {"head.weight": torch.zeros(3, 2)}
    with pytest.raises(ValueError, match=message):
        select_head_rows(state, rows, "head")
    with pytest.raises(ValueError, match=r"the checkpoint has no fc.weight, whose rows were to be chosen"):
        select_head_rows(state, [0], "fc")
