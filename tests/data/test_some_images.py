from PIL import Image

from convattn.data.images import ImageError
from convattn.data.some_images import usual_size


class Sized:
    """Images of such sizes; None cannot be read."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def read(self, index):
        if self.sizes[index] is None:
            raise ImageError("broken")
        return Image.new("RGB", self.sizes[index])


def test_the_usual_size_is_the_middle_one_by_the_short_side():
    assert usual_size(Sized((90, 10), None, (12, 80), (200, 100))) == (12, 80)
    assert usual_size(Sized(None)) is None
