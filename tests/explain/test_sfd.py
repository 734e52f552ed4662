import math

import pytest
import torch

from convattn.explain.sfd import mean_score, sfd_score

REGION = torch.zeros(4, 4, dtype=torch.bool)
REGION[:2, :2] = True


def heat(outside=0.0):
    G = REGION.float()  # noqa: N806
    G[3, 2] = outside
    return G


@pytest.mark.parametrize(
    ("outside", "score"), [(0.0, 1.0), (1.0, 4 / 5), (0.6, 0.9235251475881899), (0.4, 1.0), (0.5, None)]
)
def test_one_place_outside(outside, score):
    found = sfd_score(heat(outside).double(), REGION)
    want = 4 / (4 + (10**0.5 - 1) / 9) if score is None else score  # 0.5 is salient
    assert found.score == pytest.approx(want, abs=1e-7 if outside == 0.6 else 1e-12)
    assert found.constant == 4 / 16


def test_exactly_as_printed():
    G = REGION.double()  # noqa: N806
    G[3, 2] = 0.6
    assert sfd_score(G, REGION).score == 0.9235251475881899


def test_constant_heat_and_heat_on_everything_else():
    assert sfd_score(torch.ones(4, 4), REGION).score == 4 / 16
    assert sfd_score((~REGION).float(), REGION).score == 0


def test_the_threshold_and_the_formula_that_is_printed():
    assert sfd_score(heat(0.4), REGION, salient=0.3).score < 1
    assert "G ≥ 0.3" in sfd_score(heat(), REGION, salient=0.3).formula


def test_images_without_an_object_or_without_heat_have_no_score():
    scores = [
        sfd_score(heat(1.0), REGION),
        sfd_score(heat(), torch.zeros(4, 4, dtype=torch.bool)),
        sfd_score(torch.zeros(4, 4), REGION),
    ]
    assert [math.isnan(one.score) for one in scores] == [False, True, True]
    assert mean_score(scores) == (pytest.approx(0.8), 1)
    assert math.isnan(mean_score(scores[1:])[0])


def test_larger_maps_of_the_same_pieces_score_the_same():
    big = heat(0.6).repeat_interleave(3, 0).repeat_interleave(3, 1)
    region = REGION.repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert sfd_score(big, region).score == pytest.approx(sfd_score(heat(0.6), REGION).score, abs=1e-12)


def test_masks_of_another_size_and_heat_out_of_range():
    with pytest.raises(ValueError, match=r"^region has shape \(4, 4\) and heat \(8, 8\); give both as one \(H, W\)$"):
        sfd_score(torch.ones(8, 8), REGION)
    with pytest.raises(ValueError, match=r"^heat goes from 0 to 2; it must lie in 0..1"):
        sfd_score(2 * heat(), REGION)
    with pytest.raises(ValueError, match=r"^salient 0 must be above 0 and at most 1$"):
        sfd_score(heat(), REGION, salient=0)
