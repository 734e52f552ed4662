"""Sections of maps over the image: Grad-CAM, integrated gradients, occlusion, and the sfd score."""

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from convattn.explain.figures import map_picture
from convattn.explain.grad_cam import grad_cam
from convattn.explain.integrated_gradients import integrated_gradients
from convattn.explain.layers import find_layer
from convattn.explain.occlusion import occlusion
from convattn.explain.overlay import overlay
from convattn.explain.sfd import SfdScore, mean_score, sfd_score
from convattn.report.explaining.regions import open_regions
from convattn.report.explaining.section import Asked, OnImage, Panel, Section, Strip
from convattn.report.explaining.subject import Subject, budgets
from convattn.task import Table

__all__ = ["grad_cam_section", "integrated_gradients_section", "occlusion_section", "sfd_section"]

_BRIGHT = 0.99  # quantile of a signed map that its strongest colour stands for
_STEPS = 32  # of integrated gradients


def grad_cam_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """The picture, and for each layer and model the places that speak for the class."""
    heats = [_heats(subject, asked, on_image) for subject in subjects]
    strips = []
    for index, name in enumerate(subjects[0].names):
        rows = []
        for at in range(max(map(len, heats))):
            panels = []
            for subject, found in zip(subjects, heats, strict=True):
                layer, maps = [*found.items()][at]
                said = subject.said(index, subject.target(asked.target), asked.box_xyxy)
                silent = "" if maps[index].any() else "; nothing here speaks for it: another --layer may"
                caption = f"{subject.label}, {layer}: {said}{silent}"
                panels.append(Panel(overlay(subject.seen(index), maps[index]), caption))
            rows.append(panels)
        strips += _by_layer(name, subjects[0].seen(index), rows, asked.layers, many=len(subjects) > 1)
    about = f"Bright places speak for the class. {budgets(subjects)}"
    return Section("grad_cam", "Grad-CAM", about, tuple(strips))


def _by_layer(
    name: str, picture: Image.Image, rows: list[list[Panel]], layers: Sequence[str | int], *, many: bool
) -> list[Strip]:
    """One strip a picture; with several models one for each layer, so that models stand in columns."""
    first = Panel(picture, name)
    if not many or len(rows) == 1:
        return [Strip(name, (first, *(panel for row in rows for panel in row)))]
    titles = [f"stride {layer}" if isinstance(layer, int) else layer for layer in layers]
    return [Strip(f"{name}, {title}", (first, *row)) for title, row in zip(titles, rows, strict=True)]


def _heats(subject: Subject, asked: Asked, on_image: OnImage) -> dict[str, Tensor]:
    """Layer -> (B, H, W)."""
    target, found = subject.target(asked.target), {}
    box = None if asked.box_xyxy is None else torch.tensor(asked.box_xyxy)
    for layer in asked.layers or (None,):
        name = find_layer(subject.model, layer).name
        maps = []
        for image in subject.images.split(1):
            maps.append(grad_cam(subject.model, image, target, name, box_xyxy=box).cpu())
            on_image(1)
        found[name] = torch.cat(maps)
    return found


def integrated_gradients_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """Signed maps of what each pixel adds to the score."""

    def reckon(subject: Subject) -> Tensor:
        target = subject.target(asked.target)
        return integrated_gradients(subject.model, subject.images, target, steps=_STEPS, on_image=on_image)

    about = (
        "Red pixels add to the score of the class on the way from the mean colour to this picture, blue ones take from "
        f"it; {_STEPS} steps."
    )
    return _signed("integrated_gradients", "Integrated gradients", about, subjects, asked, reckon)


def occlusion_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """Signed maps of what is lost where a window is hidden."""

    def reckon(subject: Subject) -> Tensor:
        return occlusion(subject.model, subject.images, subject.target(asked.target), on_image=on_image)

    about = (
        "Red: hiding a window there (an eighth of the shorter side) lowers the score of the class; blue: it raises it."
    )
    return _signed("occlusion", "Occlusion", about, subjects, asked, reckon)


def _signed(
    method: str, title: str, about: str, subjects: Sequence[Subject], asked: Asked, reckon: Callable[[Subject], Tensor]
) -> Section:
    maps = [reckon(subject).cpu() for subject in subjects]
    strips = []
    for index, name in enumerate(subjects[0].names):
        panels = [Panel(subjects[0].seen(index), name)]
        for subject, found in zip(subjects, maps, strict=True):
            most = float(found[index].abs().flatten().quantile(_BRIGHT)) or 1.0
            shown = map_picture(found[index], lowest=-most, highest=most, colours="RdBu_r")
            caption = f"{subject.label}: {subject.said(index, subject.target(asked.target))}"
            panels.append(Panel(shown.resize(subject.seen(index).size, Image.Resampling.NEAREST), caption))
        strips.append(Strip(name, tuple(panels)))
    return Section(method, title, f"{about} {budgets(subjects)}", tuple(strips))


def sfd_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """Grad-CAM with the object's outline, and the score of each picture, layer and model."""
    if asked.masks is None:
        raise ValueError(
            "sfd_score needs to know where the objects are; give --masks, a folder of masks or COCO's file"
        )
    mask_of = open_regions(asked.masks, asked.mask_classes)
    strips: list[list[Panel]] = [[] for _ in subjects[0].names]
    rows, columns = [], []
    for subject in subjects:
        regions = [subject.region(mask_of(picture)) for picture in subject.pictures]
        for layer, maps in _heats(subject, asked, on_image).items():
            scores = [sfd_score(heat, region, asked.salient) for heat, region in zip(maps, regions, strict=True)]
            columns.append((f"{subject.label}, {layer}", scores))
            for panels, index in zip(strips, range(len(scores)), strict=True):
                shown = _outlined(overlay(subject.seen(index), maps[index]), regions[index])
                panels.append(Panel(shown, f"{subject.label}, {layer}: sfd {_text(scores[index].score)}"))
    for index, name in enumerate(subjects[0].names):
        constant = columns[0][1][index].constant
        rows.append((name, *(_text(scores[index].score) for _, scores in columns), f"{constant:.3f}"))
    means = [mean_score(scores) for _, scores in columns]
    rows.append((f"mean of {means[0][1]}", *(_text(mean) for mean, _ in means), _mean_constant(columns[0][1])))
    table = Table(
        "sfd score",
        ("picture", *(name for name, _ in columns), "a constant map"),
        tuple(rows),
        frozenset(range(1, len(columns) + 2)),
        note=columns[0][1][0].formula,
    )
    about = (
        "Share of the attention that lies on the object (outlined): 1 all, 0 none; a constant map scores the object's "
        f"share of the image. {budgets(subjects)}"
    )
    shown_strips = tuple(Strip(name, tuple(panels)) for name, panels in zip(subjects[0].names, strips, strict=True))
    return Section("sfd_score", "sfd score", about, shown_strips, (table,))


def _outlined(picture: Image.Image, region: Tensor) -> Image.Image:
    """With a white line around the object."""
    mask = Image.fromarray((region.numpy() * 255).astype("uint8")).resize(picture.size, Image.Resampling.NEAREST)
    edge = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(3)), mask.filter(ImageFilter.MinFilter(3)))
    shown = picture.copy()
    shown.paste((255, 255, 255), mask=edge)
    return shown


def _text(score: float) -> str:
    return "-" if math.isnan(score) else f"{score:.3f}"


def _mean_constant(scores: Sequence[SfdScore]) -> str:
    known = [one.constant for one in scores if not math.isnan(one.score)]
    return f"{sum(known) / len(known):.3f}" if known else "-"
