"""Sections of figures: receptive fields, spectra and variances."""

from collections.abc import Sequence
from typing import Any

from convattn.explain.feature_variance import draw_variances, feature_map_variance
from convattn.explain.figures import map_picture
from convattn.explain.receptive_field import (
    PUBLISHED_SIZE,
    areas_table,
    draw_receptive_fields,
    effective_receptive_field,
)
from convattn.explain.relative_field import draw_relative_fields, relative_receptive_field
from convattn.explain.spectrum import Spectra, draw_high_frequencies, draw_spectra, fourier_spectrum
from convattn.report.explaining.section import Asked, OnImage, Panel, Section, Strip, figure_panel
from convattn.report.explaining.subject import Subject, budgets
from convattn.task import Table

__all__ = ["receptive_field_section", "relative_field_section", "spectrum_section", "variance_section"]

_PANEL = 160  # pixels of the side of a spectrum, at least


def receptive_field_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """The maps side by side, and the table of their areas."""
    fields = {}
    for subject in subjects:
        seen, layer = subject.squashed(subject.size or PUBLISHED_SIZE), asked.last_layer
        fields[subject.label] = effective_receptive_field(subject.model, seen.each(), layer, on_image=on_image)
    about = (
        "How much each pixel counts for the middle of the last map: log10 of the positive gradients + 1, over its "
        "maximum."
    )
    strip = Strip("", (figure_panel(draw_receptive_fields(fields), ", ".join(fields)),))
    title = f"Effective receptive field, {'; '.join(dict.fromkeys(field.title() for field in fields.values()))}"
    return Section("effective_receptive_field", title, about, (strip,), (areas_table(fields),))


def relative_field_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """One line a model."""
    fields = {}
    how: dict[str, Any] = dict(normalise=asked.normalise, layer=asked.last_layer, on_image=on_image)
    for subject in subjects:
        fields[subject.label] = relative_receptive_field(subject.model, subject.images, **how)
    rows = [
        (label, block, f"{mean:.4f}", f"{deviation:.4f}")
        for label, field in fields.items()
        for block, mean, deviation in zip(field.blocks, field.means.tolist(), field.deviations.tolist(), strict=True)
    ]
    columns = ("model", "block", "mean over heads", "deviation")
    table = Table("Relative receptive field by block", columns, tuple(rows), frozenset({2, 3}))
    about = (
        f"From how far attention takes what it takes ({asked.normalise}), block by block; bars: deviation over heads. "
        f"{budgets(subjects)}"
    )
    strip = Strip("", (figure_panel(draw_relative_fields(fields), ", ".join(fields)),))
    return Section("relative_receptive_field", "Relative receptive field", about, (strip,), (table,))


def spectrum_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """Curves of every block, the highest frequency along depth, and the spectra of the levels as pictures."""
    blocks, levels = {}, {}
    for subject in subjects:
        blocks[subject.label] = fourier_spectrum(
            subject.model, subject.images, asked.layers or "blocks", on_image=on_image
        )
        levels[subject.label] = fourier_spectrum(subject.model, subject.images, asked.layers or "levels")
    figures = (draw_spectra(blocks), draw_high_frequencies(blocks))
    strips = [Strip("", (figure_panel(figure, ", ".join(blocks)),)) for figure in figures]
    strips += [Strip(f"Spectra of {label}", tuple(_pictures(spectra))) for label, spectra in levels.items()]
    about = (
        "Log amplitude of the maps' frequencies over that of frequency 0, dark to bright curves from first to last "
        f"block; below, the whole spectra, frequency 0 in the middle, brighter is stronger. {budgets(subjects)}"
    )
    return Section("fourier_spectrum", "Fourier spectrum", about, tuple(strips))


def _pictures(spectra: Spectra) -> list[Panel]:
    panels = []
    for layer, amplitude in spectra.amplitudes.items():
        picture = map_picture(amplitude)
        times = max(1, -(-_PANEL // picture.width))
        side = f"{len(amplitude)} x {len(amplitude)}"
        panels.append(Panel(picture.resize((picture.width * times, picture.height * times), 0), f"{layer}, {side}"))
    return panels


def variance_section(subjects: Sequence[Subject], asked: Asked, on_image: OnImage) -> Section:
    """One line a model."""
    found = {
        subject.label: feature_map_variance(subject.model, subject.images, asked.layers or "blocks", on_image=on_image)
        for subject in subjects
    }
    about = f"Variance of features over positions, a mean over channels and images. {budgets(subjects)}"
    strip = Strip("", (figure_panel(draw_variances(found), ", ".join(found)),))
    rows = tuple((label, layer, f"{value:.4g}") for label, one in found.items() for layer, value in one.items())
    table = Table("Variance by layer", ("model", "layer", "variance"), rows, frozenset({2}))
    return Section("feature_map_variance", "Feature map variance", about, (strip,), (table,))
