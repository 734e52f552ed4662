"""The parts of DINO and Sparse R-CNN against the references' numbers, and what no file holds by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import MLP, box_convert

from convattn.detection.denoising import Noise, denoising_queries, draw_noise
from convattn.detection.dino import FLAVOURS, Projection
from convattn.detection.dino_decoder import Decoder
from convattn.detection.dino_encoder import Encoder, pixel_references
from convattn.detection.dynamic_head import DynamicHead, moved_boxes
from convattn.detection.multi_scale_attention import MultiScaleAttention
from convattn.detection.positions import (
    box_positions,
    inverse_sigmoid,
    level_padding,
    map_positions,
    valid_ratios,
)
from convattn.detection.query_selection import pixel_proposals, select
from convattn.detection.set_losses import DETREX, MMDET, LossWeights, counted, match, set_losses
from convattn.detection.set_matching import CostWeights, assign
from convattn.detection.truth import Truth
from convattn.weights.query_detectors import DETREX_DINO_NAMES, SPARSE_RCNN_NAMES
from query_golden import load_golden

BAR = 1e-9


@pytest.fixture(autouse=True)
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def below(names, state, place):
    """A reference's entries under our names, of what stands at `place` in both."""
    ours, theirs = place
    found = {names.to_ours(theirs + name): tensor for name, tensor in state.items()}
    return {name.removeprefix(ours): tensor for name, tensor in found.items()}


def paddings(x, count=3):
    found = [x[f"padding{at}"] for at in range(count)]
    return found, torch.cat([each.flatten(1) for each in found], 1)


def assert_agrees(golden, got):
    errors = {name: golden.error(name, value) for name, value in got.items()}
    assert max(errors.values()) < BAR, errors


@pytest.mark.parametrize("sampling", ["rows", "grid_sample"])
def test_attention_over_levels(sampling):
    golden = load_golden("deformable")
    x, sizes = golden.inputs(), golden.config["levels"]
    layer = MultiScaleAttention(64, 8, 3, 4, sampling)
    assert_agrees(golden, {"init_offset_bias": layer.sampling_offsets.bias})
    layer.load_state_dict(golden.state())
    _, padding = paddings(x)
    got = {}
    for kind in (2, 4):
        given = [x[name].clone().requires_grad_() for name in ("query", "value", f"reference{kind}")]
        query, value, reference = given
        out = layer(query, x["query_pos"], value, reference, sizes, padding) + query
        gradients = torch.autograd.grad(out.square().sum() / 2, given)
        names = (f"grad_query{kind}", f"grad_value{kind}", f"grad_reference{kind}")
        got |= {f"output{kind}": out, **dict(zip(names, gradients, strict=True))}
    without = layer(x["query"], x["query_pos"], x["value"], x["reference2"], sizes) + x["query"]
    assert_agrees(golden, got | {"output2_no_mask": without})


def test_positions_and_masks():
    golden = load_golden("position")
    x, got = golden.inputs(), {}
    for at in range(2):
        padding = x[f"padding{at}"]
        for flavour in FLAVOURS.values():
            found = map_positions(padding, 16, flavour.temperature, flavour.position_offset, torch.float64)
            got[f"{flavour.name}{at}"] = found
        got |= {f"mask{at}_{h}x{w}": level_padding(padding, [(h, w)])[0] for h, w in ((2, 1), (3, 3), (5, 7))}
    assert_agrees(golden, got | {"query_encoding": box_positions(x["boxes"], 16)})


def test_the_encoder():
    golden = load_golden("encoder")
    x, sizes = golden.inputs(), golden.config["levels"]
    encoder = Encoder(2, 64, 8, 3, 4, 96)
    encoder.load_state_dict(below(DETREX_DINO_NAMES, golden.state(), ("encoder.", "transformer.encoder.")))
    masks, padding = paddings(x)
    ratios = valid_ratios(masks, torch.float64)
    references = pixel_references(sizes, ratios)
    given = (x["tokens"], x["position"], references, sizes, padding)
    got = {"valid_ratios": ratios, "reference_points": references}
    assert_agrees(golden, got | {"layer0": encoder.layers[0](*given), "layer1": encoder(*given)})


def test_the_decoder():
    golden = load_golden("decoder")
    x, sizes, state = golden.inputs(), golden.config["levels"], golden.state()
    movers = nn.ModuleList(MLP(64, [64, 64, 4]) for _ in range(2))
    own = {name: state.pop(name) for name in list(state) if name.startswith("bbox_embed.")}
    movers.load_state_dict(below(DETREX_DINO_NAMES, own, ("box_movers.", "")))
    decoder = Decoder(2, 64, 8, 3, 4, 96)
    decoder.load_state_dict(below(DETREX_DINO_NAMES, state, ("decoder.", "transformer.decoder.")))
    masks, padding = paddings(x)
    ratios, boxes = valid_ratios(masks, torch.float64), x["reference"].clone()
    boxes[0, 0] = torch.tensor([0, 1, 1e-4, 0.9999])
    noisy, half = x["denoise_queries"], x["denoise_queries"] // 2
    blocked = torch.zeros(noisy + x["match_queries"], noisy + x["match_queries"], dtype=torch.bool)
    blocked[noisy:, :noisy] = blocked[:half, half:noisy] = blocked[half:noisy, :half] = True
    states, moved = decoder(x["content"], boxes, x["memory"], ratios, sizes, movers, padding, blocked)
    references = decoder.references(boxes, ratios)
    position = decoder.position(references, torch.float64)
    got = {"states": torch.stack(states), "references": torch.stack(moved), "attention_mask": blocked}
    got |= {"reference_input": references, "query_pos": position, "query_sine": box_positions(references[:, :, 0], 32)}
    first = decoder.layers[0](x["content"], position, x["memory"], references, sizes, padding, blocked)
    assert_agrees(golden, got | {"layer0": first})


def test_projections_of_both_flavours():
    golden = load_golden("necks")
    x, state, got = golden.inputs(), golden.state(), {}
    for name, norm in (("detrex", "norm"), ("mmdet", "gn")):
        flavour = FLAVOURS[name]
        for at in range(4):
            channels, (kernel, stride) = golden.config["channels"][min(at + 1, 3)], (1, 1) if at < 3 else (3, 2)
            layer = Projection(channels, 64, kernel, stride, flavour.projection_bias)
            place = f"{flavour.name}.convs.{at}." if at < 3 else f"{flavour.name}.extra_convs.0."
            own = {name.removeprefix(place): state[name] for name in state if name.startswith(place)}
            layer.load_state_dict({name.replace(f"{norm}.", "norm."): tensor for name, tensor in own.items()})
            got[f"{flavour.name}{at}"] = layer(x[f"map{min(at + 1, 3)}"])
    assert_agrees(golden, got)


def test_what_pixels_propose_and_which_are_taken():
    golden = load_golden("proposals")
    x, state = golden.inputs(), golden.state()
    masks, _ = paddings(x)
    proposals, counts = pixel_proposals(masks, torch.float64)
    memory = F.linear(
        x["memory"].masked_fill(~counts[..., None], 0), state["enc_output.weight"], state["enc_output.bias"]
    )
    memory = F.layer_norm(memory, (64,), state["enc_output_norm.weight"], state["enc_output_norm.bias"])
    logits = F.linear(memory, state["class_embed.weight"], state["class_embed.bias"])
    mover = MLP(64, [64, 64, 4])
    own = {name.replace("bbox_embed.", "bbox_embed.0."): state[name] for name in state if "bbox_embed" in name}
    mover.load_state_dict(below(DETREX_DINO_NAMES, own, ("box_movers.0.", "")))
    taken = select(logits, mover(memory) + proposals, golden.config["topk"])
    got = {"output_proposals": proposals, "output_memory": memory, "index": taken.index}
    assert_agrees(golden, got | {"reference": taken.boxes, "score": taken.logits})


def test_proposals_at_the_edge_of_a_large_map_do_not_count():
    _, counts = pixel_proposals([torch.zeros(1, 50, 51, dtype=torch.bool)], torch.float64)
    counts = counts.view(50, 51)
    assert not counts[0].any()  # half of a fiftieth is a hundredth, which is not above one
    assert not counts[:, [0, 50]].any()
    assert counts[1:-1, 1:-1].all()


def test_of_fewer_pixels_than_queries_all_are_taken():
    taken = select(torch.randn(2, 5, 3), torch.randn(2, 5, 4), 9)
    assert sorted(taken.index[0].tolist()) == [0, 1, 2, 3, 4]
    assert (taken.logits.amax(-1).diff(dim=1) <= 0).all()


def test_noise_on_true_boxes():
    golden = load_golden("denoise")
    x, got = golden.inputs(), {}
    embedding = nn.Embedding.from_pretrained(golden.state()["label_enc.weight"])
    for at, case in enumerate(golden.config["cases"]):
        scale = torch.tensor([case["width"], case["height"]] * 2)
        images = range(len(case["counts"]))
        boxes = [box_convert(x[f"case{at}.boxes{image}"] / scale, "xyxy", "cxcywh") for image in images]
        noise = Noise(*(x[f"case{at}.{name}"] for name in ("label_p", "label_new", "sign", "part")))
        labels = [x[f"case{at}.labels{image}"] for image in images]
        made = denoising_queries(boxes, labels, embedding, case["dn_number"], draw=lambda *_, noise=noise: noise)
        blocked = made.blocked(golden.config["queries"])
        found = {"content": made.content, "groups": made.groups, "group_size": made.size, "attention_mask": blocked}
        found["reference_logit"] = made.boxes.logit()
        got |= {f"case{at}.{name}": value for name, value in found.items()}
        for image, (queries, chosen) in enumerate(made.targets):
            assert chosen.tolist() == [*range(case["counts"][image])] * made.groups
            assert (queries % made.size).tolist() == chosen.tolist()
    assert_agrees(golden, got)


def test_without_a_box_nothing_is_denoised():
    nothing = [torch.zeros(0, 4)] * 2
    assert denoising_queries(nothing, [torch.zeros(0, dtype=torch.int64)] * 2, nn.Embedding(3, 8), 100) is None


def test_noise_is_drawn_as_it_should_be_spread():
    torch.manual_seed(0)
    noise = draw_noise(4000, 7, torch.device("cpu"), torch.float64)
    assert {*noise.labels.tolist()} == {*range(7)}
    assert {*noise.signs.flatten().tolist()} == {-1.0, 1.0}
    assert abs(noise.signs.mean()) < 0.05
    for part in (noise.chance, noise.parts):
        assert 0 <= part.min() < part.max() < 1
        assert part.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rules", [DETREX, MMDET], ids=["detrex", "mmdet"])
def test_matching_and_losses(rules):
    golden = load_golden("matching")
    x, got = golden.inputs(), {}
    name = "detrex" if rules is DETREX else "mmdet"
    words = {"label": "loss_class" if rules is DETREX else "loss_cls", "l1": "loss_bbox"}
    words["iou"] = "loss_giou" if rules is DETREX else "loss_iou"
    label, l1, iou = golden.config["cost"]
    for at, case in enumerate(golden.config["cases"]):
        logits, pred, size = x[f"case{at}.logits"], x[f"case{at}.pred"], (case["height"], case["width"])
        truths = [
            Truth(x[f"case{at}.boxes{image}"], x[f"case{at}.labels{image}"], size)
            for image in range(len(case["counts"]))
        ]
        (pairs,) = match([logits], [pred], truths, rules, CostWeights(label, l1, iou))
        losses = set_losses(logits, pred, truths, pairs, counted(truths, pairs, rules), rules, LossWeights())
        got |= {f"case{at}.{name}.{words[part]}": loss for part, loss in losses.items()}
        for image, (queries, chosen) in enumerate(pairs):
            if rules is DETREX:
                got[f"case{at}.detrex.match{image}"] = torch.stack([queries, chosen])
            else:
                assigned = torch.zeros(case["queries"], dtype=torch.int64)
                assigned[queries] = chosen + 1
                got[f"case{at}.mmdet.assigned{image}"] = assigned
    assert {*got} == {other for other in golden.names if f".{name}." in other and ".cost" not in other}
    assert_agrees(golden, got)


def test_costs_that_have_overflowed_are_told():
    with pytest.raises(ValueError, match="costs of matching are not finite"):
        assign([torch.tensor([[1.0, float("nan")]])])


def test_a_stage_of_sparse_rcnn():
    golden = load_golden("dii")
    x = golden.inputs()
    stage = DynamicHead(32, 5, 4, 48, 8, 49)
    stage.load_state_dict(below(SPARSE_RCNN_NAMES, golden.state(), ("stages.0.", "roi_head.bbox_head.0.")))
    logits, delta, after = stage(x["proposal_features"], x["roi_features"])
    looked, _ = stage.attention(*[x["proposal_features"]] * 3)
    attended = stage.norm1(x["proposal_features"] + looked)
    dynamic = stage.dynamic(attended.flatten(0, 1), x["roi_features"])
    boxes = torch.cat([x["low"], x["low"] + x["size"]], 1)
    got = {"cls": logits, "delta": delta, "object": after, "attention": attended, "dynamic": dynamic}
    shaped = {name: value.reshape(tensor_shape(golden, name)) for name, value in got.items()}
    assert_agrees(golden, shaped | {"decoded": moved_boxes(boxes, x["delta"])})


def tensor_shape(golden, name):
    whole = golden.arrays.get(f"out.{name}")
    return whole.shape if whole is not None else tuple(golden.arrays[f"out.{name}#shape"])


def test_the_inverse_sigmoid_is_bounded_and_in_float32():
    assert inverse_sigmoid(torch.tensor([0.0, 1.0])).exp().tolist() == pytest.approx([1e-3, 1e3])
    assert inverse_sigmoid(torch.tensor([0.5], dtype=torch.float16)).dtype == torch.float32


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide 16 channels"):
        MultiScaleAttention(16, 3)
    with pytest.raises(ValueError, match="3 heads do not divide 16 channels"):
        DynamicHead(16, 5, 3, 8, 4, 49)
