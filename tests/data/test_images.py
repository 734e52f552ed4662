import numpy as np
import pytest
from PIL import Image

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
def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    with pytest.raises(ImageError, match=rf"huge.png: {side * side:,} pixels, more than the limit of {MAX_PIXELS:,}"):
        read_image(tmp_path / "huge.png")


def test_a_folder_is_named_as_one(tmp_path):
    with pytest.raises(ImageError, match=r": a folder, not an image$"):
        read_image(tmp_path)


def test_a_file_that_the_system_refuses_says_why(tmp_path, monkeypatch):
    def refuse(path, mode, buffering):
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
