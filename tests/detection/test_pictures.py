import numpy as np
from PIL import Image

from convattn.detection.pictures import DrawnObject, _common, _place, with_objects


def test_names_go_where_they_cover_no_other_and_stay_in_the_picture():
    box, size, taken = (20, 20, 60, 50), (30, 12), []
    for _ in range(5):
        x, y = _place(box, size, (120, 80), 2, taken)
        assert 0 <= x <= 120 - size[0]
        assert 0 <= y <= 80 - size[1]
        name = (x, y, x + size[0], y + size[1])
        assert not any(_common(name, other) for other in taken)
        taken.append(name)
    assert taken[0][:2] == (23, 23)  # in its corner, while that is free
    assert _place((90, 50, 99, 59), size, (100, 60), 2, [])[0] == 70


def test_the_area_that_two_names_share():
    assert _common((0, 0, 4, 3), (2, 1, 9, 9)) == 4
    assert _common((0, 0, 4, 3), (4, 0, 9, 9)) == _common((0, 0, 4, 3), (5, 7, 9, 9)) == 0


def test_both_names_of_two_objects_at_one_place_can_be_read():
    box, colours = np.array([40.0, 40, 120, 100]), ((200, 0, 0), (0, 0, 200))
    drawn = np.asarray(
        with_objects(Image.new("RGB", (200, 150)), [DrawnObject(box, colour, "object") for colour in colours])
    )
    for colour in colours:
        assert (drawn == colour).all(2).sum() > 300  # what is behind a name; an edge of the box is smaller
    assert (np.asarray(with_objects(Image.new("RGB", (9, 9)), [DrawnObject(box[::-1], (9, 9, 9), "x")])) == 0).all()
