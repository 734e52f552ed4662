"""Segmenters learn: eight images by heart, and on two processes as on one."""

import pytest
import torch
import torch.nn.functional as F

import convattn
from convattn.segmentation.confusion import confusion, scores
from convattn.segmentation.loss import pixel_losses
from forked_runs import train_forked
from tiny_runs import figures
from tiny_segmenters import tiny_segmentation, write_masks

FAMILIES = {
    "smt_nano": dict(stem_stride=4),
    "groupmixformer_nano": dict(stem_stride=4),
    "nextvit_nano_extra_norm": dict(stem_stride=4),
    "cotnet_nano": dict(stem="conv"),
    "resnet18_das": dict(dims=(16, 32, 64, 128)),
}
HEADS = ("upernet", "semantic_fpn")
QUICK = ("smt_nano", "semantic_fpn")


def scenes() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images of 64 pixels: areas of four classes with soft borders, each of its own colour with texture."""
    generator = torch.Generator().manual_seed(0)
    heights = F.interpolate(torch.randn(8, 4, 5, 5, generator=generator), size=64, mode="bicubic")
    labels = heights.argmax(1)
    colours = torch.randn(4, 3, generator=generator)
    images = colours[labels].movedim(3, 1) + 0.3 * torch.randn(8, 3, 64, 64, generator=generator)
    return images.to(memory_format=torch.channels_last), labels


@pytest.mark.parametrize(
    ("name", "head"),
    [
        pytest.param(name, head, marks=() if (name, head) == QUICK else pytest.mark.slow)  # each takes half a minute
        for name in FAMILIES
        for head in HEADS
    ],
)
def test_eight_images_are_learnt_by_heart(name, head):
    torch.manual_seed(0)
    model = convattn.create_segmenter(name, head, 4, width=32, dropout=0.0, **FAMILIES[name])
    model = model.to(memory_format=torch.channels_last)
    images, labels = scenes()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for step in range(200):
        losses = pixel_losses(model.train()(images), labels, mean="valid")
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                found = scores(confusion(model.eval()(images).argmax(1), labels, 4)).miou
            if found > 90:
                return
    raise AssertionError(f"mIoU {found:.1f} after 200 steps")


@pytest.mark.filterwarnings("ignore:.*classes.txt. names the:convattn.data.dataset.DataWarning")
@pytest.mark.parametrize("head", HEADS)
def test_two_processes_find_the_losses_of_one(tmp_path, head):
    data = write_masks(tmp_path / "data")

    def config(folder, batch_size):
        return tiny_segmentation(
            data,
            tmp_path / folder,
            data=dict(batch_size=batch_size),
            optimizer=dict(name="sgd", lr=0.05),
            task=dict(head=head, dropout=0.0),
            loop=dict(sync_batch_norm=True),
        )

    one = train_forked(config("one", 8))
    two = train_forked(config("two", 4), processes=2)
    for alone, shared in zip(figures(one), figures(two), strict=True):
        for name in ("train_loss", "aacc", "miou"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-3), name
