"""Detectors in several processes: what losses are divided by is averaged, and no gradient is waited for in vain."""

import json

import pytest
import torch

from forked_runs import ForkedProgram, meeting_point, ranks
from tiny_detectors import SIZE, WITHOUT, detector, images, target

LEARN = """
import json, sys, torch
from torch.nn.parallel import DistributedDataParallel
from tiny_detectors import SIZE, WITHOUT, detector, images, target
torch.distributed.init_process_group("gloo")
torch.set_num_threads(1)
rank, name = torch.distributed.get_rank(), sys.argv[1]
model = detector(name, **json.loads(sys.argv[2])).eval()
one = images(SIZE, SIZE)[rank]
truth = [target(SIZE, (5, 6, 50, 40), (30, 10, 80, 60), (0, 0, 20, 20)), WITHOUT][rank]
losses = {name: loss.item() for name, loss in model.losses([one], [truth]).items()}
learner = DistributedDataParallel(model.train())
for _ in range(2):
    sum(learner([one], [truth]).values()).backward()
gradient = sum(weight.grad.double().sum().item() for weight in model.parameters())
print(json.dumps([losses, gradient]))
torch.distributed.destroy_process_group()
"""


def two_processes(name: str, **options):
    store = meeting_point()
    programs = [ForkedProgram(LEARN, name, json.dumps(options), **environment) for environment in ranks(2, store.port)]
    ended = [program.join() for program in programs]
    assert [one.returncode for one in ended] == [0, 0], ended
    return [json.loads(one.stdout.strip().splitlines()[-1]) for one in ended]


def test_the_losses_of_atss_are_those_of_one_process_on_all_images():
    (first, _), (second, _) = two_processes("atss")
    truths = [target(SIZE, (5, 6, 50, 40), (30, 10, 80, 60), (0, 0, 20, 20)), WITHOUT]
    with torch.no_grad():
        together = detector("atss").eval().losses(images(SIZE, SIZE), truths)
    for name, loss in together.items():
        assert (first[name] + second[name]) / 2 == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mask_rcnn", {}),
        ("cascade_mask_rcnn", dict(style="detectron2")),
        ("retinanet", {}),
        ("sparse_rcnn", {}),
        ("dino", {}),
        ("dino", dict(flavour="mmdet")),
    ],
)
def test_a_process_without_an_object_learns_with_the_others(name, options):
    (_, first), (_, second) = two_processes(name, **options)
    assert first == pytest.approx(second, rel=1e-4) and first == first
