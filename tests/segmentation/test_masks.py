"""What masks mean, and every way in which they cannot mean anything."""

import io
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from convattn.data.colours import default_colours
from convattn.data.dataset import DataError, DataWarning
from convattn.data.images import ImageError
from convattn.segmentation.classes import ClassTable
from convattn.segmentation.masks import OtherKind, UnknownLabel, reduced
from convattn.segmentation.meaning import mask_code, table_of_numbers
from convattn.segmentation.options import IGNORED, LabelOptions
from segmentation_golden import load_golden
from tiny_masks import COLOURS, NAMES

NUMBERS = np.array([[0, 1, 2, 255], [2, 1, 0, 255]], dtype=np.uint8)
PLAIN = ClassTable("classes.txt", NAMES)
COLOURED = ClassTable("classes.txt", NAMES, None, COLOURS)


def content(pixels, format="PNG", palette=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def read(code, file, name="mask.png"):
    labels, problem = code.read_known(file, name)
    if problem:
        raise UnknownLabel(problem)
    assert labels.dtype == np.uint8
    assert labels.flags.writeable
    return labels.tolist()


def code_of(table=PLAIN, **options):
    return mask_code(table, LabelOptions(**options))


def grey_png(rows, bits):
    """A grey PNG of so many bits, which Pillow does not write; a byte a row."""
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 8 // bits * len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "file",
    [
        content(NUMBERS),
        content(NUMBERS, palette=bytes(range(255, -1, -1)) * 3),
        content(NUMBERS, "TIFF"),
        content(NUMBERS, "BMP"),
    ],
    ids=["PNG", "palette", "TIFF", "BMP"],
)
def test_numbers_are_classes_whatever_colours_a_palette_has(file):
    assert read(code_of(), file) == NUMBERS.tolist()


def test_masks_of_fewer_bits_hold_their_numbers():
    assert read(code_of(), grey_png([[0b00_01_10_00]], 2)) == [[0, 1, 2, 0]]
    assert read(code_of(), grey_png([[0x01, 0x20]], 4)) == [[0, 1, 2, 0]]
    assert read(code_of(), grey_png([[0b10100000]], 1)) == [[1, 0, 1, 0, 0, 0, 0, 0]]
    tables = [ClassTable("", NAMES), ClassTable("", ("a", "b"))]
    for bits, table in zip((4, 1), tables, strict=True):  # in a palette
        image = Image.fromarray(NUMBERS % len(table.names)).convert("P")
        assert read(code_of(table), content(image, bits=bits)) == (NUMBERS % len(table.names)).tolist()


def test_a_number_counts_for_nothing_and_others_are_no_class():
    assert read(code_of(ignore_index=2), content(NUMBERS[:, :3])) == [[0, 1, 255], [255, 1, 0]]
    with pytest.raises(UnknownLabel) as error:
        read(code_of(ClassTable("", NAMES), ignore_index=0), content(NUMBERS), "masks/a\n.png")
    assert str(error.value) == (
        r"masks/a\n.png: label 255 in 2 pixels, and the 2 classes are 1 to 2; set labels.ignore_index 255 if it "
        "counts for nothing, or name its class in classes.txt"
    )
    with pytest.raises(UnknownLabel) as error:
        read(code_of(ignore_index=1), content(np.array([[3, 3, 4, 9, 0]], dtype=np.uint8)))
    assert str(error.value).startswith("mask.png: label 3 in 2 pixels (and 4, 9), and the 2 classes are 0, 2; set ")
    assert "labels.reduce_zero_label" not in str(error.value)
    with pytest.raises(UnknownLabel, match=r"label 3 in .* labels.reduce_zero_label if 0 does and classes count f"):
        read(code_of(), content(np.array([[3]], dtype=np.uint8)))


@pytest.fixture(autouse=True)
def quiet():
    """What counts for nothing is told by a warning, which one test looks at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


def test_a_class_that_counts_for_nothing_is_told_and_left_out():
    table = ClassTable("classes.txt", ("sky", "void", "road"), None, COLOURS)
    with pytest.warns(DataWarning, match="classes.txt: 'void' has the number 1, which counts for nothing"):
        code = mask_code(table, LabelOptions(ignore_index=1))
    assert (code.classes, code.colours) == (("sky", "road"), (COLOURS[0], COLOURS[2]))
    colours = np.array([[COLOURS[1], COLOURS[2]]], dtype=np.uint8)
    assert read(code, content(colours)) == [[IGNORED, 1]]


def test_reduced_labels_are_the_references():
    golden = load_golden("metrics")
    raw = golden.given("raw_label").numpy().astype(np.uint8)
    assert golden.error("reduced_label", reduced(raw).astype(np.int64)) == 0
    every = np.arange(256, dtype=np.uint8)
    assert reduced(every).tolist() == [255, *range(254), 255]


def test_reduce_zero_label_is_applied_once():
    classes = tuple(f"c{number}" for number in range(254))
    table = mask_code(ClassTable("", classes), LabelOptions(reduce_zero_label=True))
    every = np.arange(256, dtype=np.uint8)[None]
    assert read(table, content(every)) == [reduced(every[0]).tolist()]
    counted_from_1 = ClassTable("objectInfo150.txt", NAMES, (1, 2, 3))
    counted_from_0 = ClassTable("id2label.json", NAMES, (0, 1, 2))
    for table in (PLAIN, counted_from_1, counted_from_0):
        code = mask_code(table, LabelOptions(reduce_zero_label=True))
        assert read(code, content(np.array([[0, 1, 2, 3, 255]], dtype=np.uint8))) == [[255, 0, 1, 2, 255]]
    with pytest.raises(UnknownLabel, match=r"label 0 in 1 pixels, .* 1 to 3; .* labels.reduce_zero_label if 0 does"):
        read(mask_code(counted_from_1, LabelOptions()), content(np.array([[0, 1]], dtype=np.uint8)))


def test_stated_numbers_may_have_gaps():
    code = mask_code(ClassTable("", NAMES, (7, 0, 200)), LabelOptions())
    assert read(code, content(np.array([[0, 7, 200, 255]], dtype=np.uint8))) == [[1, 0, 2, 255]]


def test_colours_are_classes():
    file = content(np.array([COLOURS, COLOURS[::-1]], dtype=np.uint8))
    assert read(code_of(COLOURED), file) == [[0, 1, 2], [2, 1, 0]]
    opaque = content(Image.fromarray(np.array([COLOURS], dtype=np.uint8)).convert("RGBA"))
    assert read(code_of(COLOURED), opaque) == [[0, 1, 2]]
    code = pickle.loads(pickle.dumps(code_of(COLOURED)))
    assert read(code, file) == [[0, 1, 2], [2, 1, 0]]
    assert read(pickle.loads(pickle.dumps(code)), file) == [[0, 1, 2], [2, 1, 0]]
    assert len(pickle.dumps(code)) < 10_000  # without the table of all colours


def test_every_colour_of_255_is_told_apart():
    colours = default_colours(255)
    code = mask_code(ClassTable("", tuple(map(str, range(255))), None, colours), LabelOptions())
    assert read(code, content(np.array([colours], dtype=np.uint8))) == [[*range(255)]]


def test_an_unknown_colour_is_named_with_its_pixels_and_the_nearest_class():
    pixels = np.array([[COLOURS[0], (129, 64, 128), (129, 64, 128), (0, 0, 0)]], dtype=np.uint8)
    labels, problem = code_of(COLOURED).read_known(content(pixels), "mask.png")
    assert labels.tolist() == [[0, 255, 255, 255]]
    assert problem == (
        "mask.png: colour 129 64 128 in 2 pixels is no class; the nearest is 'road', 128 64 128; 1 pixels have others; "
        "name its class in classes.txt, and set its number as labels.ignore_index if it counts for nothing"
    )
    many = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert code_of(COLOURED).read_known(content(many), "m")[1].endswith("; masks must not be smoothed")


def test_colours_without_known_ones_are_refused_with_what_to_write():
    file = content(np.array([[*COLOURS, COLOURS[0]]], dtype=np.uint8))
    with pytest.raises(OtherKind) as error:
        read(code_of(), file)
    assert str(error.value) == (
        "mask.png: an RGB mask (70 130 180, 0 120 0, 128 64 128), and no colours of classes are known; write a line "
        "`NAME R G B` for each class into classes.txt, or name such a file with labels.classes"
    )
    grey = content(np.repeat(NUMBERS[..., None], 3, axis=2))
    with pytest.raises(
        OtherKind, match=r"three equal channels, .* one channel .* if its greys \(0, 1, 2, 255\) are the nu"
    ):
        read(code_of(), grey)


def test_black_and_white_masks_go_by_their_greys_where_the_classes_are_greys():
    table = ClassTable("classes.txt", ("background", "object"), None, ((0, 0, 0), (255, 255, 255)))
    masks = np.array([[0, 255], [255, 255]], dtype=np.uint8)
    for image in (Image.fromarray(masks), Image.fromarray(masks).convert("1"), Image.fromarray(masks).convert("RGB")):
        assert read(code_of(table), content(image)) == [[0, 1], [1, 1]]


def test_a_palette_in_which_colours_are_those_of_other_classes_is_refused():
    mixed = bytes([*COLOURS[2], *COLOURS[0], *COLOURS[1]])
    with pytest.raises(OtherKind) as error:
        read(code_of(COLOURED), content(NUMBERS[:, :3], palette=mixed))
    assert str(error.value) == (
        "mask.png: number 0 has the colour 128 64 128 in its palette, that of number 2 in classes.txt; save masks as "
        "RGB if colours count, as one grey channel if numbers do"
    )
    right = bytes(part for colour in COLOURS for part in colour)
    assert read(code_of(COLOURED), content(NUMBERS[:, :3], palette=right)) == NUMBERS[:, :3].tolist()
    own = bytes([*COLOURS[2], *COLOURS[0], 9, 9, 9])
    assert read(code_of(COLOURED), content(NUMBERS[:, :3], palette=own)) == NUMBERS[:, :3].tolist()


def deep():
    return content(np.array([[0, 300]], dtype=np.uint16))


def floats():
    return content(Image.fromarray(np.array([[0.0, 2.5]], dtype=np.float32)), "TIFF")


def see_through():
    return content(Image.new("RGBA", (2, 2), (70, 130, 180, 10)))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            deep(),
            r"mask.png: a mask of more than 8 bits \(mode I;16, numbers up to 300\); save its numbers of classes with",
        ),
        (floats(), r"a mask of more than 8 bits \(mode F, numbers up to 2.5\)"),
        (see_through(), r"mask.png: a mask with transparent pixels; save it as PNG of class numbers"),
        (content(Image.new("LA", (2, 2))), r"mask.png: a mask in mode LA; save it as PNG with one channel"),
        (content(Image.new("CMYK", (2, 2)), "TIFF"), r"mask.png: a mask in mode CMYK; save it as PNG with one channel"),
        (
            content(NUMBERS, "JPEG"),
            r"mask.png: a JPEG, which changes the numbers and colours of pixels; save masks as PNG",
        ),
        (content(Image.new("RGB", (2, 2)), "JPEG"), r"mask.png: a JPEG, which changes the numbers"),
        (b"", r"mask.png: the file is empty"),
        (
            content(np.random.default_rng(0).integers(0, 3, (90, 90), dtype=np.uint8))[:900],
            r"mask.png: damaged or cut short",
        ),
        (b"hello, I am no image at all", r"mask.png: not an image of a known format"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_masks_of_other_kinds_are_errors_of_one_image(file, message):
    with pytest.raises(ImageError, match=message) as error:
        read(code_of(COLOURED), file)
    assert "\n" not in str(error.value)


def test_a_mask_that_would_fill_the_memory_is_refused_by_its_header():
    huge = bytearray(content(NUMBERS))
    huge[16:24] = struct.pack(">II", 100_000, 100_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    with pytest.raises(ImageError, match=r"mask.png: 10,000,000,000 pixels, more than the limit of"):
        read(code_of(), bytes(huge))


def test_classes_of_the_data_are_matched_with_those_of_a_model_by_name():
    table = ClassTable("classes.txt", ("road", "sky"), None, COLOURS[:2])
    code = mask_code(table, LabelOptions(), classes=NAMES)
    assert code.classes == NAMES
    assert read(code, content(np.array([[0, 1]], dtype=np.uint8))) == [[2, 0]]
    assert code.colours == (COLOURS[1], default_colours(3)[1], COLOURS[0])
    own = ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    assert mask_code(table, LabelOptions(), classes=NAMES, colours=own).colours == own
    with pytest.raises(DataError, match=r"classes.txt: class 'car' is here but not among the training classes"):
        mask_code(ClassTable("classes.txt", ("sky", "car")), LabelOptions(), classes=NAMES)


def test_without_a_file_numbers_are_places_in_a_models_classes_or_their_names():
    code = mask_code(None, LabelOptions(), classes=NAMES, colours=COLOURS)
    assert read(code, content(NUMBERS)) == NUMBERS.tolist()
    assert read(code, content(np.array([COLOURS], dtype=np.uint8))) == [[0, 1, 2]]
    code = mask_code(None, LabelOptions(), classes=("0", "5", "9"))
    assert read(code, content(np.array([[9, 0, 5]], dtype=np.uint8))) == [[2, 0, 1]]


def test_numbers_that_occur_are_classes_which_is_told():
    with pytest.warns(
        DataWarning, match=r"masks: nothing names the classes .*, so they are the 3 numbers in masks: 0, 4, 9"
    ):
        table = table_of_numbers({9, 0, 4, 255}, LabelOptions(), "masks")
    assert (table.names, table.numbers) == (("0", "4", "9"), (0, 4, 9))
    with pytest.raises(DataError) as error:
        table_of_numbers({0, 255}, LabelOptions(), "masks")
    assert str(error.value) == (
        "masks: masks hold 0 alone beside 255, which counts for nothing; there is nothing to tell apart. If 255 is a "
        "class, write classes.txt with a line `NAME R G B` for each, as `object 255 255 255`, or set another "
        "labels.ignore_index"
    )


def test_one_class_alone_is_refused():
    with pytest.raises(DataError, match=r"classes.txt: only one class, 'sky'; there is nothing to tell apart"):
        mask_code(ClassTable("classes.txt", ("sky", "void")), LabelOptions(ignore_index=1))
