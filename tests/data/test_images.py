import io
import os
import re
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from convattn.data import images
from convattn.data.images import MAX_PIXELS, ImageError, read_image


def picture(size=(6, 4), mode="RGB", color=(200, 100, 50)):
    return Image.new(mode, size, color)


def colour(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_plain_rgb_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), pixels)


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, kind):
    pixels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"deep.{kind}")
    read = np.asarray(read_image(tmp_path / f"deep.{kind}"))
    assert read.tolist() == [[[value] * 3 for value in (0, 1, 128, 255)]]


def test_float_pixels_in_0_to_1_are_scaled_and_others_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "unit.tif")
    assert np.asarray(read_image(tmp_path / "unit.tif"))[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, 900.0]], dtype=np.float32)).save(tmp_path / "wide.tif")
    with pytest.raises(ImageError, match=r"wide.tif: .*pixels from 0.0 to 900.0 do not fit the range 0 to 1.0"):
        read_image(tmp_path / "wide.tif")


def test_cmyk_becomes_rgb(tmp_path):
    picture(mode="CMYK", color=(0, 255, 255, 0)).save(tmp_path / "red.tif")
    assert colour(tmp_path / "red.tif") == (255, 0, 0)
    picture(mode="CMYK", color=(0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = colour(tmp_path / "red.jpg")
    assert red > 245
    assert max(green, blue) < 10


def test_palette_is_resolved(tmp_path):
    picture().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert colour(tmp_path / "p.png") == (200, 100, 50)


@pytest.mark.parametrize(
    ("mode", "color", "seen"),
    [
        ("RGBA", (200, 100, 50, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),  # a fifth of black over white
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (90, 255), (90, 90, 90)),
    ],
)
def test_transparency_is_laid_on_white(tmp_path, mode, color, seen):
    picture(mode=mode, color=color).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png") == seen


def test_a_transparent_entry_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    read = read_image(tmp_path / "p.png")
    assert (read.getpixel((0, 0)), read.getpixel((1, 0))) == ((255, 255, 255), (200, 100, 50))


def test_exif_orientation_turns_the_image(tmp_path):
    image = picture((6, 4))
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    read = read_image(tmp_path / "turned.png")
    assert read.size == (4, 6)
    assert read.getpixel((3, 0)) == (0, 0, 0)  # the top left corner is now the top right one


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [picture(color=(255, 0, 0)), picture(color=(0, 0, 255))]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert colour(tmp_path / "a.webp") == (255, 0, 0)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty.png: the file is empty$"):
        read_image(tmp_path / "empty.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone.png: no such file$"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "bmp"])
def test_a_truncated_file_is_an_error_of_one_line(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{kind}"
    Image.fromarray(pixels).save(whole)
    (tmp_path / f"cut.{kind}").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(ImageError, match=rf"cut.{kind}: ") as caught:
        read_image(tmp_path / f"cut.{kind}")
    assert "\n" not in str(caught.value)


def test_text_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(ImageError, match=r"a.jpg: not an image of a known format"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow itself only warns of the first, and refuses the second
def test_a_huge_image_is_refused_before_it_is_decoded(side):
    content = bytearray(png(Image.new("1", (1, 1))))
    content[16:24] = side.to_bytes(4) * 2  # in the header alone
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    with pytest.raises(ImageError, match=rf"huge.png: {side * side:,} pixels, more than the limit of {MAX_PIXELS:,}"):
        read_image(bytes(content), "huge.png")


def test_a_folder_is_named_as_one(tmp_path):
    with pytest.raises(ImageError, match=r": a folder, not an image$"):
        read_image(tmp_path)


def test_a_file_that_the_system_refuses_says_why(tmp_path, monkeypatch):
    def refuse(path, mode, opener):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "locked.png").write_bytes(b"x")
    monkeypatch.setattr(images, "open", refuse, raising=False)
    with pytest.raises(ImageError, match=r"locked.png: could not be read \(Permission denied\)$"):
        read_image(tmp_path / "locked.png")


def test_integers_of_more_than_16_bits_are_refused_without_calling_them_damaged(tmp_path):
    Image.fromarray(np.full((2, 2), 100_000, dtype=np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ImageError, match=r"wide.tif: pixels from 100000 to 100000 do not fit the range 0 to 65535"):
        read_image(tmp_path / "wide.tif")


def test_content_is_read_like_a_file_and_named_in_errors(tmp_path):
    picture().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert read_image(content).getpixel((0, 0)) == (200, 100, 50)
    with pytest.raises(ImageError, match=r"^a.tar/a.png: damaged or cut short"):
        read_image(content[:45], "a.tar/a.png")
    with pytest.raises(ImageError, match=r"^45 bytes: damaged"):
        read_image(content[:45])
    with pytest.raises(ImageError, match=r"^a.tar/a.png: the file is empty"):
        read_image(b"", "a.tar/a.png")


def test_a_file_that_is_too_large_for_an_image_is_not_read(tmp_path):
    with open(tmp_path / "disk.jpg", "wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # takes no room
    with pytest.raises(ImageError, match=r"disk.jpg: 268,435,457 bytes, more than the limit of 268,435,456"):
        read_image(tmp_path / "disk.jpg")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a pipe"),
        (lambda path: os.symlink("/dev/zero", path), "a device"),
        (lambda path: os.symlink("/dev/tty", path), "a device"),
        (lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), "a socket"),
    ],
)
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, monkeypatch, make, kind):
    monkeypatch.chdir(tmp_path)
    make(Path("a.jpg"))
    with pytest.raises(ImageError, match=rf"^a.jpg: {kind}, not an image$"):
        read_image("a.jpg")


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.jpg")
    regular = os.stat(__file__)
    monkeypatch.setattr(images.os, "stat", lambda path: regular)  # between the look and the opening
    with pytest.raises(ImageError, match=r"a.jpg: a pipe, not an image$"):
        read_image(tmp_path / "a.jpg")


def test_links_that_lead_in_a_circle_and_names_that_cannot_be_are_errors(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a.jpg: could not be read \(Too many levels of symbolic links\)$"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"^a\\x00.jpg: could not be read \(embedded null byte\)$"):
        read_image("a\0.jpg")
    with pytest.raises(ImageError, match=r"xx.jpg: could not be read \(File name too long\)$"):
        read_image(tmp_path / ("x" * 300 + ".jpg"))


@pytest.mark.parametrize("name", ["two\nlines.jpg", "\x1b[31mred.jpg", "latin\udce9.jpg", "\u202egpj.exe"])
def test_errors_of_images_take_one_line_whatever_the_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"broken")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("suffix", ["eps", "tga", "pcx", "ico", "pdf"])
def test_formats_that_start_programs_or_are_hardly_tested_are_no_images(tmp_path, suffix):
    picture().save(tmp_path / f"a.{suffix}")
    with pytest.raises(ImageError, match=rf"a.{suffix}: not an image of a known format$"):
        read_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("format", [*images.FORMATS, "MPO"])
def test_every_format_of_the_list_is_read(format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    buffer = io.BytesIO()
    picture((16, 12)).save(buffer, format)
    red, green, blue = read_image(buffer.getvalue()).getpixel((3, 3))
    assert max(abs(red - 200), abs(green - 100), abs(blue - 50)) < 12


def png(image, *chunks):
    """A PNG file with more chunks behind its header."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    content = buffer.getvalue()
    more = b"".join(len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks)
    return content[:33] + more + content[33:]


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"prompt\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(2_000_000))),
        (b"tEXt", b"notes\0" + b"x" * 2_000_000),
    ],
    ids=lambda chunk: chunk[0].decode(),
)
def test_a_png_with_a_long_text_or_profile_is_read_and_turned(chunk, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 2**20)  # of 64 MiB
    image = picture((6, 4))
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    read = read_image(png(image, (b"eXIf", exif.tobytes()), chunk))
    assert read.size == (4, 6)
    assert read.getpixel((3, 0)) == (0, 0, 0)
    assert read.getpixel((0, 0)) == (200, 100, 50)


def header_of(mode, format, side, **options):
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "format", "options", "side"),
    [
        ("RGBA", "PNG", {}, 8400),
        ("RGB", "WEBP", {"lossless": True}, 5900),
        ("RGB", "JPEG", {"progressive": True}, 7400),
        ("L", "JPEG2000", {}, 8800),
    ],
)
def test_what_would_take_too_much_memory_is_refused_by_its_header(monkeypatch, mode, format, options, side):
    """On small images with the limit as much smaller: one of `side` pixels is too large, one of 0.9 of it is not."""
    monkeypatch.setattr(images, "MAX_DECODED", images.MAX_DECODED // 100**2)
    assert read_image(header_of(mode, format, int(0.9 * side) // 100, **options)).mode == "RGB"
    with pytest.raises(ImageError, match=rf"^a: .* pixels of {format} in mode {mode} would take .* bytes to decode"):
        read_image(header_of(mode, format, side // 100, **options), "a")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process's memory")
@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGBA", "PNG", {}),
        ("I;16", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("F", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_deflate", "strip_size": 10**8}),
        ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGBA", "JPEG2000", {}),
        ("RGBA", "AVIF", {"speed": 10}),
    ],
    ids=str,
)
def test_no_image_takes_more_memory_than_its_header_lets_expect(tmp_path, mode, format, options):
    side = 2500
    in_child(lambda: (tmp_path / "a").write_bytes(header_of(mode, format, side, **options)))
    content = (tmp_path / "a").read_bytes()

    def measure():
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        read_image(content)
        (tmp_path / "grown").write_text(str(resident("VmHWM") - before))

    in_child(measure)
    needed = int(re.search(r"take ([\d,]+) bytes", refusal(content))[1].replace(",", ""))
    grown = int((tmp_path / "grown").read_text())
    assert 0.4 * needed < grown < needed + 30 * 2**20  # pieces that are converted, the allocator's own


def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def resident(entry):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{entry}:\s+(\d+)", status)[1])


def refusal(content):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_DECODED", 1)
        with pytest.raises(ImageError) as caught:
            read_image(content)
    return str(caught.value)


def test_pieces_of_an_image_make_the_same_picture_as_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (37, 53, 4), dtype=np.uint8))
    grey = Image.fromarray(rng.integers(0, 65536, (37, 53), dtype=np.uint16))
    whole = [images.as_rgb("a", image.copy()).tobytes() for image in (colour, grey)]
    for piece in (20, 53, 700):
        monkeypatch.setattr(images, "_PIECE", piece)
        assert [images.as_rgb("a", image.copy()).tobytes() for image in (colour, grey)] == whole


def test_floats_that_are_no_numbers_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match=r"nan.tif: pixels from nan to nan do not fit the range 0 to 1.0"):
        read_image(tmp_path / "nan.tif")


@pytest.mark.parametrize(("side", "refused"), [(64, False), (40_000, True)])
def test_a_tile_that_is_larger_than_its_image_counts(side, refused):
    """A TIFF of 10 × 10 pixels in one tile of grey: libtiff holds the tile as a whole."""
    tile = zlib.compress(bytes(64 * 64))
    shape = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in shape.items())
    content = b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + struct.pack("<H", len(shape)) + entries + bytes(4)
    if refused:
        with pytest.raises(ImageError, match=r"^a: 10 × 10 pixels of TIFF in mode L would take 1,6.* bytes to decode"):
            read_image(content, "a")
    else:
        assert read_image(content).size == (10, 10)


def test_of_many_frames_one_is_decoded():
    frames = [picture((8, 8), color=(index % 256, 0, 0)) for index in range(300)]
    for format in ("GIF", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
        assert read_image(buffer.getvalue()).getpixel((0, 0)) == (0, 0, 0)


def test_a_jpeg_of_very_many_pieces_of_exif_is_refused_at_once():
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    content = buffer.getvalue()
    with pytest.raises(ImageError, match=r"^a: damaged or cut short \(more than 1,000 pieces of EXIF\)$"):
        read_image(content[:2] + b"\xff\xe1\0\x08Exif\0\0" * 500_000 + content[2:], "a")


def test_a_decoder_without_memory_is_an_error_of_the_image(monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(images, "as_rgb", fail)
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    with pytest.raises(ImageError, match=r"^a: not enough memory to decode it"):
        read_image(buffer.getvalue(), "a")


def test_a_damaged_tiff_is_told_by_its_error_alone(capfd):
    """libtiff and Pillow's log would write their own lines, which name no file."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
        buffer, "TIFF", compression="tiff_lzw"
    )
    content = buffer.getvalue()
    with pytest.raises(ImageError, match=r"^photo\.tif: damaged or cut short \("):
        read_image(content[:600] + bytes(100) + content[700:], "photo.tif")
    samples = struct.pack("<HHIH", 277, 3, 1, 3)
    assert samples in content
    with pytest.raises(ImageError, match=r"^photo\.tif: "):
        read_image(content.replace(samples, struct.pack("<HHIH", 277, 3, 1, 9_999)), "photo.tif")
    assert capfd.readouterr() == ("", "")
