import random
import tarfile

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from convattn.data.dataset import DataError
from convattn.data.stream import StreamLoader
from convattn.data.transforms import PictureAlone
from tiny_archives import add, files_in, write_shards, write_tar
from tiny_runs import write_pictures


@pytest.fixture
def samples(tmp_path):
    """24 samples of two classes, by number."""
    found = files_in(write_pictures(tmp_path / "pictures", size=4) / "train")
    return [(f"{at:02d}", content, int(name.startswith("dark"))) for at, (name, content) in enumerate(found)]


@pytest.fixture
def pipe(tmp_path, samples):
    """Six shards of four samples behind a command."""
    write_shards(tmp_path / "shards", samples, shards=6)
    return f"pipe:cat {tmp_path}/shards/{{0000..0005}}.tar"


def noisy(image):
    """One draw of each generator, and the mean of the image."""
    return torch.tensor([random.random(), np.random.rand(), torch.rand(()), float(pil_to_tensor(image).float().mean())])


def loader(source, batch_size=4, images=24, **options):
    return StreamLoader(source, PictureAlone(noisy), ["bright", "dark"], batch_size, images=images, **options)


def names(batches):
    return [path.rpartition("/")[2][:2] for batch in batches for path in batch.paths]


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.paths == other.paths
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_an_order_of_its_own_and_is_the_same_again(pipe, samples, workers):
    stream = loader(pipe, workers=workers)
    assert (len(stream), stream.images) == (6, 24)
    first = list(stream.batches(0))
    assert sorted(names(first)) == [key for key, *_ in samples]
    same(first, list(loader(pipe, workers=workers).batches(0)))
    second = list(stream.batches(1))
    assert names(second) != names(first)
    assert names(loader(pipe, workers=workers, seed=1).batches(0)) != names(first)
    assert not {float(batch.images[0, 0]) for batch in first} & {float(batch.images[0, 0]) for batch in second}
    labels = {key: label for key, _, label in samples}
    for batch in first:
        assert [labels[name] for name in names([batch])] == batch.targets.tolist()
        assert [bool(image[3] < 128) for image in batch.images] == [bool(label) for label in batch.targets]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [1, 4, 9])
def test_what_is_skipped_leaves_the_rest_as_it_was(pipe, workers, skip):
    stream = loader(pipe, images=36, workers=workers)  # beyond the end of the shards, and not to the end of a round
    whole = list(stream.batches(3))
    assert len(whole) == 9
    same(list(stream.batches(3, skip)), whole[skip:])


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_share_an_epoch(pipe, samples, workers):
    shares = [list(loader(pipe, workers=workers, rank=rank, replicas=2).batches(0)) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 3]
    assert sorted(names(shares[0]) + names(shares[1])) == [key for key, *_ in samples]


def test_reading_leaves_the_random_states_of_the_process_alone(pipe):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    list(loader(pipe).batches(0))
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


def test_what_cannot_be_used_is_set_aside_by_name(tmp_path, samples):
    good = samples[0][1]
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in (("good.png", good), ("good.cls", b"dark"), ("cut.png", good[:50]), ("cut.cls", b"1")):
            add(archive, name, content)
        add(archive, "high.png", good), add(archive, "high.cls", b"2")
        add(archive, "none.png", good)
        add(archive, "alone.cls", b"1")
        add(archive, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "../out.png", good), add(archive, "../out.cls", b"1")
    (batch,) = loader(f"pipe:cat {tmp_path}/0.tar", batch_size=7, images=7).batches(0)
    assert set(names([batch])) == {"go"}
    assert (len(batch), batch.targets.tolist()) == (7, [1] * 7)
    start = f"pipe:cat {tmp_path}/0.tar"
    reasons = {path.removeprefix(start): why.removeprefix(path) for path, why in batch.unreadable.items()}
    assert reasons.pop("/cut.png").startswith(": damaged or cut short")
    assert reasons == {
        "/high.png": ": label 2 must be between 0 and 1, for 2 classes",
        "/none.png": ": no .cls or .json beside it states its label",
        "/alone": ": no image beside its label",
        "/link.png": ": a link to '/etc/passwd', not a file",
        "/../out.png": ": its name leads out of the archive",
    }


def test_numbers_are_names_where_the_classes_are_called_by_numbers(tmp_path, samples):
    members = [(f"{at}.{kind}", part) for at in (2, 10) for kind, part in (("png", samples[0][1]), ("cls", b"%d" % at))]
    write_tar(tmp_path / "0.tar", members)
    stream = StreamLoader(f"pipe:cat {tmp_path}/0.tar", PictureAlone(noisy), ["10", "2", "3"], 2, images=2)
    (batch,) = stream.batches(0)
    found = {path.rpartition("/")[2]: label for path, label in zip(batch.paths, batch.targets.tolist(), strict=True)}
    assert found == {"2.png": 1, "10.png": 0}


def test_a_shard_that_fails_is_set_aside_and_the_others_go_on(tmp_path, pipe):
    (tmp_path / "shards" / "0002.tar").unlink()
    whole = (tmp_path / "shards" / "0004.tar").read_bytes()
    (tmp_path / "shards" / "0004.tar").write_bytes(whole[:700])
    stream = loader(pipe)
    first = list(stream.batches(0))
    failed = {path.rpartition("/")[2]: why for batch in first for path, why in batch.unreadable.items()}
    assert set(failed) == {"0002.tar", "0004.tar"}
    assert [len(batch) for batch in first] == [4] * 6
    same(list(stream.batches(0, 2)), first[2:])


@pytest.mark.parametrize("workers", [0, 1])
def test_without_any_shard_that_can_be_read_it_ends(tmp_path, workers):
    with pytest.raises(DataError, match=r"none of 1 shards could be read to its end: pipe:cat .*0.tar: "):
        list(loader(f"pipe:cat {tmp_path}/0.tar", workers=workers).batches(0))
    write_tar(tmp_path / "0.tar", [("readme.txt", b"")])
    with pytest.raises(DataError, match=r"0.tar: no sample"):
        list(loader(f"pipe:cat {tmp_path}/0.tar", workers=workers).batches(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(images=None), r"a pipe cannot be counted; set data.epoch_images"),
        (dict(images=3), r"data.epoch_images 3 does not fill a batch of 4"),
        (
            dict(workers=4, replicas=2),
            r"6 shards for 8 processes that read them; lower data.workers to 3 or cut smaller",
        ),
    ],
)
def test_what_cannot_work_is_said_before_it_begins(pipe, options, message):
    with pytest.raises(DataError, match=message):
        loader(pipe, **options)
