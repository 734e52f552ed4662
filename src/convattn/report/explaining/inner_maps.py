"""Sections of the inner maps of this package's blocks: GroupMixFormer, SMT, CoTNet, DAS."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from convattn.explain.contexts import contexts, draw_local_weights, draw_shares, dynamic_shares, local_weights
from convattn.explain.figures import map_picture
from convattn.explain.gates import SamplingPoints, arrow_scale, draw_offsets, draw_points, gate_maps, sampling_points
from convattn.explain.modulation_maps import ENLARGED, modulation_maps
from convattn.explain.overlay import overlay
from convattn.explain.response_maps import response_maps
from convattn.report.explaining.section import Asked, OnImage, Panel, Section, Strip, figure_panel
from convattn.report.explaining.subject import Subject, budgets

__all__ = ["contexts_section", "gates_section", "modulation_section", "response_section"]

_MAP = 192  # pixels of the side of a small map on the page, at least


def response_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """The picture, the ensemble and each group of tokens."""
    strips = []
    for subject in subjects:
        found = response_maps(subject.model, subject.images, asked.last_layer)
        for index, name in enumerate(subject.names):
            shown = [Panel(overlay(subject.seen(index), maps[index]), title) for title, maps in found.maps.items()]
            strips.append(Strip(f"{name}: {subject.label}, {found.block}", (Panel(subject.seen(index), name), *shown)))
            on_image(1)
    about = (
        "How strongly each group of tokens answers: norms over channels, each map scaled from its least to its "
        f"greatest. {budgets(subjects)}"
    )
    return Section("response_maps", "Response maps of group-mix attention", about, tuple(strips))


def modulation_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """Before and after the aggregation, level by level."""
    strips = []
    for subject in subjects:
        found = modulation_maps(subject.model, subject.images, asked.layers or None)
        for index, name in enumerate(subject.names):
            for at, word in enumerate(("before", "after")):
                shown = [
                    Panel(_enlarged(maps[at][index], ENLARGED), f"{block}, {word}") for block, maps in found.items()
                ]
                strips.append(Strip(f"{name}: {subject.label}, {word}", (Panel(subject.seen(index), name), *shown)))
            on_image(1)
    about = (
        "Mean over channels of absolute values in front of scale-aware aggregation and behind it (the modulator), each "
        f"map in its own colours from least to most. {budgets(subjects)}"
    )
    return Section("modulation_maps", "Before and after scale-aware aggregation", about, tuple(strips))


def contexts_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """Static and dynamic context, the weights of one position, and the share of the dynamic context along depth."""
    strips, shares = [], {}
    for subject in subjects:
        found = contexts(subject.model, subject.images, asked.last_layer)
        maps = {"static context": found.static, "dynamic context": found.dynamic, "output": found.output}
        for index, name in enumerate(subject.names):
            there = ((title, one[index].abs().float().mean(0)) for title, one in maps.items() if one is not None)
            shown = [Panel(_enlarged(mean), title) for title, mean in there]
            strips.append(Strip(f"{name}: {subject.label}, {found.block}", (Panel(subject.seen(index), name), *shown)))
            on_image(1)
        if found.dynamic is not None:
            row, column = _place(subject, asked, found.static)
            block, weights = local_weights(subject.model, subject.images[:1], (row, column), asked.last_layer)
            caption = f"{block} at row {row}, column {column} of {subject.names[0]}: 3 x 3 weights of each kernel"
            strips.append(
                Strip(f"Local weights of {subject.label}", (figure_panel(draw_local_weights(weights[0]), caption),))
            )
        if found.shares is not None:
            shares[subject.label] = dynamic_shares(subject.model, subject.images)
    if shares:
        strips.append(Strip("", (figure_panel(draw_shares(shares), ", ".join(shares)),)))
    about = (
        f"Mean over channels of absolute values, each map in its own colours from least to most. {budgets(subjects)}"
    )
    return Section("contexts", "Contexts of a contextual transformer block", about, tuple(strips))


def gates_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """For each gate what it lets pass, which way its offsets point, and where it reads for one position."""
    strips = []
    for subject in subjects:
        gates = gate_maps(subject.model, subject.images, asked.layers or None)
        points = sampling_points(subject.model, subject.images, asked.layers or None)
        for index, name in enumerate(subject.names):
            panels = [Panel(subject.seen(index), name)]
            for gate, one in gates.items():
                mean = one[index].mean(0)
                ranges = f"{_range(mean)}, elements {_range(one[index])}"
                panels.append(Panel(_enlarged(mean), f"{gate}: mean over channels {ranges}"))
            strips.append(Strip(f"{name}: {subject.label}", tuple(panels)))
            strips.append(Strip(f"{name}: offsets of {subject.label}", tuple(_offsets(subject, asked, points, index))))
            on_image(1)
    about = (
        "What each place is multiplied by, a mean over channels, dark least to bright most; where the mean offset "
        f"points; where the kernel reads for one position (the cross), dots as large as weights. {budgets(subjects)}"
    )
    return Section("gate_maps", "Gates, offsets and sampling points", about, tuple(strips))


def _offsets(subject: Subject, asked: Asked, points: dict[str, SamplingPoints], index: int) -> list[Panel]:
    panels, seen = [], subject.seen(index)
    true_size = seen.resize(subject.height_width[::-1])
    for gate, one in points.items():
        row, column = _place(subject, asked, one.weights)
        longest = float(one.mean_offsets()[index].norm(dim=0).max())
        times = arrow_scale(one, index)
        drawn = f", drawn {times} times as long" if times > 1 else ""
        caption = f"{gate}: mean offsets, the longest {longest:.2f} pixels of its map{drawn}"
        panels.append(figure_panel(draw_offsets(one, true_size, index), caption))
        panels.append(Panel(draw_points(one, seen, row, column, index), f"{gate}: read for row {row}, column {column}"))
    return panels


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.2f} to {float(values.max()):.2f}"


def _place(subject: Subject, asked: Asked, maps: Tensor) -> tuple[int, int]:
    """Row and column on a map (…, h, w) of the position that was asked for, in the middle by default."""
    height, width = subject.height_width
    x, y = asked.position or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"position {x} {y} lies outside images of {width} x {height} pixels (width x height)")
    return y * maps.shape[-2] // height, x * maps.shape[-1] // width


def _enlarged(values: Tensor, times: int = 1) -> Image.Image:
    """A map as a picture of some size: bilinear so many times, then its pixels as they are."""
    picture = map_picture(values, times=times)
    more = max(1, -(-_MAP // max(picture.size)))
    return picture.resize((picture.width * more, picture.height * more), Image.Resampling.NEAREST)
