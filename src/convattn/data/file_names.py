"""Which files of a folder or an archive count, by their names alone."""

import mimetypes
from collections import Counter
from collections.abc import Collection
from functools import cache

from PIL import Image

from convattn.data.dataset import tell
from convattn.data.images import FORMATS

__all__ = [
    "LABEL_SUFFIXES",
    "WHAT_COUNTS",
    "image_suffixes",
    "is_image_name",
    "is_service_name",
    "is_service_path",
    "is_shard_name",
    "is_unread_name",
    "tell_unread",
]

LABEL_SUFFIXES = ("cls", "json")  # of what states an image's label in a WebDataset shard
WHAT_COUNTS = "files ending in .jpg, .jpeg, .png and the other suffixes of Pillow's formats count"
_SERVICE_NAMES = {  # of systems, file servers and archivers; those that begin with a point need no row
    "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot",
    "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "lost+found", "network trash folder", "temporary items", "__pycache__",
}  # fmt: skip
# Pictures that neither Pillow nor Python's table of file types knows.
_MORE_PICTURES = {"jxl", "hif", "dng", "nef", "cr2", "cr3", "arw", "orf", "raf", "rw2"}
_READ = (*FORMATS, "MPO")  # which is JPEG of several images


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, without their point, of the formats that are read here, by Pillow's own list of them."""
    return frozenset(suffix[1:] for suffix, format in Image.registered_extensions().items() if format in _READ)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like that of an image that can be read here; hidden ones are none."""
    return _suffix(name) in image_suffixes() and not is_service_name(name.rpartition("/")[2])


def is_unread_name(name: str) -> bool:
    """Whether a file's name ends like that of an image of a format that is not read here."""
    suffix = _suffix(name)
    if not suffix or suffix in image_suffixes() or is_service_name(name.rpartition("/")[2]):
        return False
    if f".{suffix}" in Image.registered_extensions() or suffix in _MORE_PICTURES:
        return True
    return (_types().guess_type(f"x.{suffix}")[0] or "").startswith("image/")


def is_shard_name(name: str) -> bool:
    """Whether a member of an archive is an image or may state the label of one."""
    return (_suffix(name) in LABEL_SUFFIXES or is_image_name(name)) and not is_service_path(name)


def is_service_name(name: str) -> bool:
    """Whether a file or folder is hidden or belongs to a system: never an image, a class or a split."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _SERVICE_NAMES


def is_service_path(path: str) -> bool:
    """Whether a file or one of the folders above it is hidden or belongs to a system."""
    return any(map(is_service_name, path.split("/")))


def tell_unread(where: object, names: Collection[str]) -> None:
    """Say how many files of a place are images that are not read here, by their suffixes."""
    if names:
        counted = ", ".join(f"{count:,} .{suffix}" for suffix, count in Counter(map(_suffix, names)).most_common())
        tell(f"{where}: passed over, because Pillow reads no such format here: {counted}")


def _suffix(name: str) -> str:
    stem, _, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if stem else ""


@cache
def _types() -> mimetypes.MimeTypes:
    return mimetypes.MimeTypes(())  # Python's own table, the same on every system
