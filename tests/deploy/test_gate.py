"""What the gate compares, on what, and what counts as agreement."""

import math
from importlib import resources

import pytest
import torch
from PIL import Image
from torch import nn

import convattn
from convattn.deploy.export_report import ExportError
from convattn.deploy.gate import TOLERANCES, Tolerance, Trial, compare, compare_outputs, trials
from convattn.deploy.inputs import MOST_PHOTOGRAPHS, read_calibration, read_photographs
from convattn.deploy.runtimes import torch_export
from convattn.deploy.runtimes.runtime import as_list, output_names
from convattn.task import Pairs
from tiny_exports import SIZE, tiny_net
from toys import build_toy

WANT = torch.tensor([[3.0, 0.0, 4.0], [0.0, 1.0, 0.0]])


def test_figures_by_hand():
    (found,) = compare_outputs([torch.tensor([[3.0, 0.0, 4.0], [0.0, 1.0, 1.0]])], WANT)
    assert found.name == "output"
    assert found.relative_error == 1 / 4  # of the largest of all, not of its image's
    assert found.cosine == pytest.approx(1 / math.sqrt(2))  # of the second image
    (found,) = compare_outputs([torch.tensor([[4.0, 0.0, 3.0], [0.0, 1.0, 0.0]])], WANT)
    assert found.relative_error == 0.25
    assert found.cosine == pytest.approx(24 / 25)


def test_every_output_has_its_name():
    found = compare_outputs([WANT, WANT], [WANT, WANT], "level")
    assert [(check.name, check.cosine) for check in found] == [("level_0", 1.0), ("level_1", 1.0)]
    assert [check.name for check in compare_outputs([WANT, WANT], {"masks": WANT, "scores": WANT})] == [
        "masks",
        "scores",
    ]
    assert [check.name for check in compare_outputs([WANT], (WANT,))] == ["output_0"]
    with pytest.raises(ValueError, match="the file gives 1 outputs and the model 2"):
        compare_outputs([WANT], [WANT, WANT])
    for key in ("images", "", 3):
        with pytest.raises(
            ValueError, match=rf"an output of the model is called {key!r}; a file takes texts other than"
        ):
            output_names({key: WANT})


def test_what_a_task_says_of_both_is_the_mean_over_the_batches():
    shares = iter([0.25, 0.75])
    trial = Trial("random", (torch.rand(2, 3, 1, 1), torch.rand(2, 3, 1, 1)))
    model = nn.Flatten()

    def agreement(got, want):
        assert [output.shape for output in (*got, *want)] == [(2, 3)] * 2
        return {"same": next(shares)}

    (found,) = compare(model, lambda images: [model(images)], [trial], agreement)
    assert found.check.agreement == {"same": 0.5}
    (found,) = compare(model, lambda images: [model(images)], [trial])
    assert found.check.agreement == {}
    (found,) = compare(model, lambda images: [images], [trial], agreement)  # not asked of other shapes
    assert found.check.agreement == {}


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        (WANT * float("nan"), WANT, float("inf")),
        (WANT[:1], WANT, float("inf")),
        (torch.full((1, 2), float("inf")), torch.full((1, 2), float("inf")), 0.0),
        (torch.tensor([[float("inf"), 1.0]]), torch.tensor([[float("inf"), 2.0]]), 0.5),
        (torch.tensor([[float("inf"), 1.0]]), torch.tensor([[2.0, 1.0]]), float("inf")),
        (torch.zeros(1, 2), torch.zeros(1, 2), 0.0),
    ],
)
def test_what_is_no_number_never_agrees_unless_both_say_so(got, want, error):
    (found,) = compare_outputs([got], want)
    assert found.relative_error == error
    assert found.meets(Tolerance(1.0, 0.5)) is (error <= 1.0)


def test_a_tolerance_asks_for_both_figures():
    (found,) = compare_outputs([torch.tensor([[3.0, 0.0, 4.0], [0.0, 1.0, 1.0]])], WANT)
    assert found.meets(Tolerance(0.25))
    assert not found.meets(Tolerance(0.24))
    assert found.meets(Tolerance(0.25, 0.7))
    assert not found.meets(Tolerance(0.25, 0.71))


def test_lower_precision_is_asked_for_less():
    errors = [TOLERANCES[precision].relative_error for precision in ("fp32", "fp16", "bf16", "int8")]
    assert errors == sorted(errors)
    assert all(TOLERANCES[precision].least_cosine for precision in ("fp16", "bf16", "int8"))


def test_outputs_are_compared_by_their_own_scale():
    """The logits of a fresh network are tiny and alike: an absolute tolerance would let anything pass."""
    want = 1e-6 * WANT
    (found,) = compare_outputs([want + 0.01 * want.max()], want)
    assert found.relative_error == pytest.approx(0.01, rel=1e-5)
    assert not found.meets(TOLERANCES["fp32"])


def test_what_a_task_says_the_scale_of_is_compared_by_that():
    model, trial = nn.Flatten(), Trial("random", (torch.rand(1, 3, 1, 1),))
    for got, want, error in ((0.06, 0.064, 0.004), (0.6, 0.64, 0.04)):
        pairs = Pairs([torch.tensor([[got]])], [torch.tensor([[want]])], 1.0, [1.0])
        (found,) = compare(model, lambda images: [model(images)], [trial], paired=lambda *both, pairs=pairs: pairs)
        assert found.check.relative_error == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(
    ("dynamic", "shapes"),
    [
        ("none", {(1, 3, 40, 48)}),
        ("batch", {(batch, 3, 40, 48) for batch in (1, 2, 3)}),
        ("all", {(batch, 3, *size) for batch in (1, 2, 3) for size in ((40, 48), (72, 48), (45, 65))}),
    ],
)
def test_every_freedom_is_tried_with_photographs_and_random_numbers(dynamic, shapes):
    photographs = torch.rand(5, 3, 40, 48)
    tried = trials(dynamic, (3, 40, 48), photographs)
    assert {tuple(batch.shape) for trial in tried for batch in trial.batches} == shapes
    sizes = {trial.images: set() for trial in tried}
    for trial in tried:
        sizes[trial.images].add(tuple(trial.batches[0].shape[2:]))
    assert sizes["photographs"] == sizes["random"]
    seen = torch.cat(tried[0].batches)
    assert torch.equal(seen[:5], photographs)
    assert len(seen) == (5 if dynamic == "none" else 6)  # the last batch is filled up


def test_a_smaller_size_is_tried_where_networks_take_it():
    sizes = {tuple(t.batches[0].shape[2:]) for t in trials("all", (3, 224, 256), torch.rand(2, 3, 224, 256))}
    assert sizes == {(224, 256), (256, 256), (229, 273), (168, 192)}


def forgetful(run, is_wrong):
    """A runtime that keeps what it made for earlier shapes: right at first, wrong where `is_wrong(earlier, now)`."""
    earlier = []

    def exported(images):
        now = tuple(images.shape)
        factor = 1.1 if earlier and is_wrong(earlier, now) else 1.0
        earlier.append(now)
        return [factor * output for output in as_list(run(images))]

    return exported


@pytest.mark.parametrize(
    ("dynamic", "is_wrong"),
    [
        ("batch", lambda earlier, now: now == earlier[0] != earlier[-1]),
        ("all", lambda earlier, now: now[2:] != earlier[0][2:] and now[0] not in (earlier[-1][0], 1)),
        ("all", lambda earlier, now: now[2:] != earlier[-1][2:] and now[0] == earlier[-1][0]),
        ("all", lambda earlier, now: now == earlier[0] and now[2:] != earlier[-1][2:]),
        ("all", lambda earlier, now: now in earlier and now[2:] not in (earlier[0][2:], earlier[-1][2:])),
    ],
    ids=["the first again", "more at another size", "as many at another size", "the first size again", "another again"],
)
def test_what_is_wrong_only_behind_other_shapes_is_found(dynamic, is_wrong):
    model = nn.AvgPool2d(4)
    exported = forgetful(model, is_wrong)
    found = list(compare(model, exported, trials(dynamic, (3, 40, 48), torch.rand(5, 3, 40, 48))))
    agrees = [comparison.check.meets(TOLERANCES["fp32"]) for comparison in found]
    assert all(agrees[:2])
    assert not all(agrees)


def test_all_of_it_is_run_in_one_opened_file(tmp_path, monkeypatch):
    honest = torch_export.open_file

    def breaks(earlier, now):
        if now == earlier[0] != earlier[-1]:
            raise RuntimeError("lengths do not match")

    monkeypatch.setattr(torch_export, "open_file", lambda path: forgetful(honest(path), breaks))
    traced = " x ".join(map(str, (2, *SIZE)))
    with pytest.raises(ExportError, match=rf"does not run at input {traced}: .*lengths do not match.* not kept"):
        convattn.export(tiny_net(), tmp_path / "tiny.pt2", dynamic="batch")
    assert list(tmp_path.iterdir()) == []


def test_the_worst_batch_is_kept():
    model = nn.Flatten()

    def exported(images):
        return [images.flatten(1) * (1.1 if images[0, 0, 0, 0] > 0.5 else 1.0)]

    photographs = torch.full((4, 3, 2, 2), 0.25)
    photographs[2:] = 0.75
    trial = trials("batch", (3, 2, 2), photographs)[0]
    (comparison,) = compare(model, exported, [trial])
    assert comparison.check.count == 4
    assert comparison.check.relative_error == pytest.approx(0.1)
    assert torch.equal(comparison.worst, photographs[2:])


def test_what_a_model_may_give():
    assert as_list(WANT)[0] is WANT
    assert len(as_list((WANT, WANT))) == len(as_list({"masks": WANT, "scores": WANT})) == 2
    for wrong in ({"out": None}, {}, [], [WANT, None], None):
        with pytest.raises(TypeError, match="what can be exported gives a tensor or several"):
            as_list(wrong)


def test_the_photographs_are_small_and_their_owners_are_named():
    folder = resources.files("convattn.deploy.photographs")
    files = [file for file in folder.iterdir() if file.name.endswith(".jpg")]
    licences = (folder / "LICENCES.md").read_text()
    assert len(files) == 4
    for file in files:
        assert len(file.read_bytes()) <= 25_000
        assert f"`{file.name}`" in licences


def test_photographs_are_prepared_as_the_weights_expect():
    model = build_toy("smt_nano")
    found = read_photographs(model, (3, 32, 32))
    assert found.images.shape == (4, 3, 32, 32)
    with Image.open(resources.files("convattn.deploy.photographs") / "astronaut.jpg") as astronaut:
        assert torch.equal(found.images[0], convattn.transforms_for(model)(astronaut))
    assert read_photographs(model, (3, 40, 56)).images.shape == (4, 3, 40, 56)
    grey = read_photographs(model, (1, 32, 32)).images
    assert torch.equal(grey, found.images[:, :1])
    assert torch.equal(read_photographs(model, (4, 32, 32)).images[:, 3], found.images[:, 0])


def test_a_folder_of_photographs_is_added_and_what_cannot_be_read_is_named(tmp_path):
    for index in range(3):
        Image.new("RGB", (50, 40), (80 * index, 10, 10)).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    found = read_photographs(build_toy("smt_nano"), (3, 32, 32), tmp_path)
    assert len(found.images) == 4 + 3
    assert found.set_aside == (f"{tmp_path}/broken.jpg: not an image of a known format",)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match=r"none of its 1 images can be read; the first: .*broken.jpg: not an image"):
        read_photographs(build_toy("smt_nano"), (3, 32, 32), tmp_path)


def test_of_many_photographs_some_are_taken_evenly(tmp_path):
    count = 2 * MOST_PHOTOGRAPHS
    for index in range(count):
        Image.new("RGB", (4, 4), (index, index, index)).save(tmp_path / f"{index:04}.png")
    images = read_photographs(build_toy("smt_nano"), (3, 32, 32), tmp_path).images[4:]
    assert len(images) == MOST_PHOTOGRAPHS
    steps = images[:, 0, 0, 0].diff()
    assert torch.allclose(steps, steps[:1], atol=1e-5)
    assert steps[0] > 0


def test_calibration_images_come_from_a_folder_or_as_tensors(tmp_path):
    model = build_toy("smt_nano")
    Image.new("RGB", (50, 40)).save(tmp_path / "one.png")
    (tmp_path / "two.png").write_bytes(b"")
    (image,), set_aside = read_calibration(model, (3, 32, 32), tmp_path)
    assert image.shape == (1, 3, 32, 32)
    assert len(set_aside) == 1 and "two.png: the file is empty" in set_aside[0]

    batch = torch.rand(3, 3, 32, 32)
    for given in (batch, list(batch), list(batch.split(1)), [batch[:2], batch[2]]):
        images, set_aside = read_calibration(model, (3, 32, 32), given)
        assert torch.equal(torch.cat(images), batch)
        assert [image.shape for image in images] == [(1, 3, 32, 32)] * 3
        assert set_aside == ()
    with pytest.raises(ValueError, match="has an image 3 x 16 x 32, and the file is written for 3 x 32 x 32"):
        read_calibration(model, (3, 32, 32), torch.rand(2, 3, 16, 32))
    with pytest.raises(ValueError, match="calibration has no image"):
        read_calibration(model, (3, 32, 32), [])


def test_of_whole_numbers_the_share_that_differs_counts():
    want = torch.tensor([[0, 1, 2, 200]], dtype=torch.uint8)
    near, far = (compare_outputs([torch.tensor([[0, 1, 2, wrong]])], want)[0] for wrong in (199, 0))
    assert (near.relative_error, near.cosine) == (far.relative_error, far.cosine) == (0.25, 0.75)
    assert compare_outputs([want.float()], want)[0].relative_error == 0
