import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convattn.data.colours import default_colours
from convattn.data.dataset import DataError
from convattn.segmentation.classes import ClassTable, find_class_file, read_classes

NAMES = ("sky", "traffic light", "road")
COLOURS = ((70, 130, 180), (250, 170, 30), (128, 64, 128))
NUMBERS = (0, 7, 3)


def read(tmp_path, text, name="classes.txt"):
    file = tmp_path / name
    file.write_text(text)
    table = read_classes(file)
    assert table.where == str(file)
    return table.names, table.numbers, table.colours


@pytest.mark.parametrize(
    ("line", "numbers", "colours"),
    [
        ("{name}", None, None),
        ("{name} {r} {g} {b}", None, COLOURS),
        ("{r} {g} {b}\t\t{name}", None, COLOURS),  # label_colors.txt of CamVid
        ("{name}, {r}, {g}, {b}", None, COLOURS),
        ("{name} #{hex}", None, COLOURS),
        ("#{hex} {name}", None, COLOURS),
        ("{number} {name}", NUMBERS, None),
        ("{number}: {name}", NUMBERS, None),
        ("{number} {r} {g} {b} {name}", NUMBERS, COLOURS),
        ("{number};{name};{r};{g};{b}", NUMBERS, COLOURS),
    ],
)
def test_a_line_is_a_class_in_any_of_the_usual_ways(tmp_path, line, numbers, colours):
    rows = [
        line.format(name=name, number=number, r=rgb[0], g=rgb[1], b=rgb[2], hex=bytes(rgb).hex())
        for name, number, rgb in zip(NAMES, NUMBERS, COLOURS, strict=True)
    ]
    assert read(tmp_path, "# made by hand\n\n" + "\n".join(rows) + "\n") == (NAMES, numbers, colours)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nsky,70,130,180\ntraffic light,250,170,30\nroad,128,64,128\n"),
        ("a.csv", "Class;Color\nsky;#4682b4\ntraffic light;#faaa1e\nroad;#804080\n"),
        ("a.json", '[{"name": "sky", "color": [70, 130, 180]}, {"name": "traffic light", "color": "#faaa1e"}, '
                   '{"name": "road", "colour": "128 64 128"}]'),
        ("a.json", '{"sky": [70, 130, 180], "traffic light": [250, 170, 30], "road": [128, 64, 128]}'),
    ],
)  # fmt: skip
def test_tables_and_json_name_colours_too(tmp_path, name, text):
    assert read(tmp_path, text, name) == (NAMES, None, COLOURS)


def test_json_may_be_names_alone_or_names_by_number(tmp_path):
    assert read(tmp_path, json.dumps(NAMES), "a.json") == (NAMES, None, None)
    assert read(tmp_path, json.dumps({"classes": NAMES}), "a.json") == (NAMES, None, None)
    by_number = {str(number): name for number, name in zip(NUMBERS, NAMES, strict=True)}
    assert read(tmp_path, json.dumps(by_number), "id2label.json") == (NAMES, NUMBERS, None)


def test_the_table_of_ade20k_has_numbers_and_whole_names(tmp_path):
    text = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11\t9\t1\twall\n2\t0.10\t8\t7\t1\tbuilding, edifice\n"
    assert read(tmp_path, text, "objectInfo150.txt") == (("wall", "building, edifice"), (1, 2), None)


def test_a_number_that_not_every_line_begins_with_belongs_to_the_name(tmp_path):
    assert read(tmp_path, "3 wheeler\ncar\n")[:2] == (("3 wheeler", "car"), None)
    assert read(tmp_path, "1\n2\n3\n")[:2] == (("1", "2", "3"), None)


@given(st.lists(st.text("abc xyz", min_size=1).map(str.strip).filter(bool), min_size=1, unique=True))
def test_names_come_back_as_they_are(tmp_path_factory, names):
    file = tmp_path_factory.mktemp("classes") / "classes.txt"
    file.write_text("\n".join(names))
    assert read_classes(file) == ClassTable(str(file), tuple(names))


@settings(max_examples=60)
@given(
    st.sampled_from(["a.txt", "a.csv", "a.json"]),
    st.one_of(
        st.text(),
        st.lists(st.text("abc 0123456789#,;\t\"'-", max_size=12)).map("\n".join),
        st.lists(st.text("abc 0123456789#,", max_size=9)).map(lambda rows: "\n".join(["name,r,g,b,id", *rows])),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["name", "color", "id", "7", "r", "g", "b"]), inner, max_size=4)
            ),
        ).map(json.dumps),
    ),
)
def test_whatever_stands_in_a_file_is_classes_or_one_line(tmp_path_factory, name, text):
    file = tmp_path_factory.mktemp("classes") / name
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        table, problem = read_classes(file), ""
    except DataError as error:
        table, problem = None, str(error)
    if table is None:
        assert len(problem.splitlines()) == 1
    else:
        assert len({*table.names}) == len(table.names) > 0
        assert all(table.names)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "sky 0 0 0\nroad 1 2 3\ncar 0 0 0\n", r"a.txt, line 3: 'car' has the colour 0 0 0 of 'sky' "
         r"\(line 1\); give each class a colour of its own"),
        ("a.txt", "sky\nroad\nsky\n", r"a.txt, line 3: class 'sky' stands in line 1 already; give each class a name"),
        ("a.txt", "0 sky\n1 road\n1 car\n", r"a.txt, line 3: 'car' has the number 1 of 'road' \(line 2\)"),
        ("a.txt", "sky 0 0 0\nroad\n", r"a.txt, line 2: class 'road' has no colour, and others have one; give every"),
        ("a.txt", "\n# nothing\n", r"a.txt: names no class; write one a line"),
        ("a.txt", "0 sky\n256 road\n", r"a.txt, line 2: number 256 must be between 0 and 255"),
        ("a.txt", "\n".join(map(str, range(256))), r"a.txt: 256 classes; masks of 8 bits tell at most 255 apart"),
        ("a.csv", "name,r,g,b\nsky,1,2\n", r"a.csv, line 2: 3 cells for 4 columns"),
        ("a.csv", "name,r,g,b\nsky,1,2,300\n", r"a.csv, line 2: colour .* must be red, green and blue from 0 to 255"),
        ("a.csv", "name,id\nsky,one\n", r"a.csv, line 2: number 'one' must be a whole number from 0"),
        ("a.json", "{", r"a.json: could not be read as JSON"),
        ("a.json", "3", r"a.json: holds int, not a list of classes"),
        ("a.json", "[3]", r"a.json, entry 1: '3' is neither a name nor an object with a name"),
        ("a.json", '[{"color": [1, 2, 3]}]', r"a.json, entry 1: no name; every class needs one"),
        ("a.json", '{"sky": [1, 2]}', r"a.json, entry 1: colour '\[1, 2\]' must be red, green and blue"),
        ("a.json", '[{"name": "sky", "color": [true, 2, 3]}]', r"a.json, entry 1: colour .* must be red"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_named_with_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_classes(tmp_path / name)
    assert "\n" not in str(error.value)


def test_files_that_are_no_list_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.txt: no such file; it should name the classes"):
        read_classes(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"a folder, not a list"):
        read_classes(tmp_path)
    (tmp_path / "photo.txt").write_bytes(b"\x89PNG\0\0\0")
    with pytest.raises(DataError, match=r"photo.txt: could not be read as text"):
        read_classes(tmp_path / "photo.txt")
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate(2**21)
    with pytest.raises(DataError, match=r"huge.txt: 2,097,152 bytes, too many for a list of classes"):
        read_classes(tmp_path / "huge.txt")


def test_the_file_beside_the_data_is_found(tmp_path):
    assert find_class_file(tmp_path) is None
    for name in ("label_colors.txt", "classes.txt"):
        (tmp_path / name).touch()
        assert find_class_file(tmp_path) == tmp_path / name


def test_default_colours_are_the_same_for_a_place_and_no_two_alike():
    colours = default_colours(255)
    assert default_colours(7) == colours[:7]
    assert len({*colours}) == 255
    assert min(max(colour) for colour in colours) > 100  # black is what counts for nothing
    first = colours[:12]
    apart = [
        sum(abs(a - b) for a, b in zip(one, other, strict=True)) for at, one in enumerate(first) for other in first[:at]
    ]
    assert min(apart) > 80
