import pytest
from PIL import Image

from convattn.data.dataset import DataError
from convattn.data.joined_dataset import JoinedDataset
from convattn.data.sources import open_data, open_unlabelled
from tiny_archives import files_in, write_shards, write_tar
from tiny_runs import write_pictures


def test_any_layout_serves_without_labels(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", train=2, val=1)
    files = files_in(pictures)
    Image.new("RGB", (4, 4)).save(pictures / "loose.png")
    sources = {
        pictures: 7,
        pictures / "train" / "dark": 2,
        write_tar(tmp_path / "all.tar", files): 6,
        write_shards(tmp_path / "shards" / "deep", [(name[:-4], content, "cat") for name, content in files]).parent: 6,
        f"{tmp_path}/shards/deep/{{0000..0001}}.tar": 6,
    }
    (tmp_path / "shards" / "deep" / "._0000.tar").write_bytes(b"\x00\x05\x16\x07")  # as macOS leaves them
    (tmp_path / "list.csv").write_text("path\npictures/loose.png\n")
    sources[tmp_path / "list.csv"] = 1
    for source, count in sources.items():
        data = open_unlabelled(source)
        assert (len(data), set(data.labels), len(data.classes)) == (count, {-1}, 0)
        assert data.read(count - 1).mode == "RGB"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no image; files ending in .jpg"):
        open_unlabelled(tmp_path / "empty")


def test_labelled_and_unlabelled_images_make_one_data_set(tmp_path):
    labelled = open_data(write_pictures(tmp_path / "a", train=2), "train")
    more = open_unlabelled(write_pictures(tmp_path / "b", train=1, val=1))
    joined = JoinedDataset(labelled, more)
    assert list(joined.classes) == ["bright", "dark"]
    assert list(joined.labels) == [0, 0, 1, 1, -1, -1, -1, -1]
    assert len(joined) == len(joined.paths) == 8
    assert list(joined.paths) == [*labelled.paths, *more.paths]
    assert joined.paths[-1] == more.paths[3]
    assert joined.read(3).tobytes() == labelled.read(3).tobytes()
    assert joined.read(4).tobytes() == more.read(0).tobytes()
    with pytest.raises(IndexError):
        joined.paths[8]
