"""`convattn explain`: what a model looks at."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from convattn.atomic import write_atomically
from convattn.cli.arguments import UsageError, words_of
from convattn.cli.console import print_table, progress_bar, say, warn
from convattn.cli.options.explain import Options, methods_of
from convattn.data.images import ImageError, read_image
from convattn.deploy.load import ExportedModel
from convattn.explain.blocks import available_methods
from convattn.model_files import open_model
from convattn.prediction import find_pictures
from convattn.report.explaining.methods import METHODS
from convattn.report.explaining.page import write_explanation
from convattn.report.explaining.section import Asked, Section
from convattn.report.explaining.subject import Subject

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn explain` with these options; returns the exit status, 1 if an image could not be read."""
    names = methods_of(options)
    if options.masks is not None and not options.masks.exists():
        raise UsageError(f"--masks {options.masks}: no such file or folder")
    most = options.images or max(METHODS[name].most for name in names)
    found = [str(picture) for picture in find_pictures(options.pictures)]
    pictures = _readable(found[:most])
    if not pictures:
        raise ImageError("no image could be read")
    subjects = _subjects(options, pictures)
    asked = _asked(options)
    sections = []
    with progress_bar() as progress:
        for name in names:
            method, chosen = METHODS[name], _having(subjects, name, options)
            if not chosen:
                continue
            few = [subject.first(options.images or method.most) for subject in chosen]
            repeats = len(few) * max(1, len(asked.layers) if name in ("grad_cam", "sfd_score") else 1)
            task = progress.add_task(name, total=repeats * len(few[0].pictures))
            try:
                sections.append(method.explain(few, asked, partial(progress.advance, task)))
            except ValueError as error:
                if not _is_all(options) or (name == names[-1] and not sections):  # one by one, or none of all
                    raise
                warn(f"{name} is left out: {error}")
            progress.update(task, visible=False)
    _write(options, subjects, sections)
    return 0 if len(pictures) == len(found[:most]) else 1


def _readable(pictures: Sequence[str]) -> list[str]:
    """Those that can be read; the others are told."""
    kept = []
    for picture in pictures:
        try:
            read_image(picture)
        except ImageError as error:
            warn(str(error))
        else:
            kept.append(picture)
    return kept


def _subjects(options: Options, pictures: Sequence[str]) -> list[Subject]:
    subjects: list[Subject] = []
    for source in (options.model, *options.compare):
        torch.manual_seed(0)  # of random weights
        model = open_model(source, pretrained=not options.random_weights)
        if isinstance(model, ExportedModel):
            raise UsageError(f"{source}: an exported file has no inner tensors and no gradients; give the model itself")
        label = Path(source).stem if Path(source).exists() else source
        same = sum(subject.label.partition(" (")[0] == label for subject in subjects)
        subjects.append(Subject(f"{label} ({same + 1})" if same else label, model, pictures, options.size))
    return subjects


def _asked(options: Options) -> Asked:
    return Asked(
        layers=[int(word) if word.isdecimal() else word for word in words_of(options.layer or "")],
        target=options.target,
        box_xyxy=options.box,
        normalise=options.normalise,
        position=options.position,
        masks=options.masks,
        mask_classes=words_of(options.mask_classes or ""),
        salient=options.salient,
    )


def _having(subjects: Sequence[Subject], name: str, options: Options) -> Sequence[Subject]:
    """The models that a method is for: with `all`, those that have its tensors; else all, one without is an error."""
    if not _is_all(options):
        return subjects
    if name == "sfd_score" and options.masks is None:
        return []
    return [subject for subject in subjects if name in available_methods(subject.model)]


def _is_all(options: Options) -> bool:
    return options.method.strip() == "all"


def _write(options: Options, subjects: Sequence[Subject], sections: Sequence[Section]) -> None:
    labels = ", ".join(subject.label for subject in subjects)
    weights = ", random weights" if options.random_weights else ""
    said = [section.as_json() for section in sections]
    if options.output.suffix == ".html":
        write_explanation(options.output, sections, f"What {labels} looks at{weights}")
    else:
        _write_pictures(options.output, sections)
        write_atomically(options.output / "explanation.json", json.dumps(said, indent=1).encode())
    if options.json:
        print(json.dumps({"models": [subject.label for subject in subjects], "sections": said}))
        return
    for section in sections:
        for table in section.tables:
            say(table.title)
            print_table(table)
            if table.note:
                say(table.note)
    say(str(options.output))


def _write_pictures(folder: Path, sections: Sequence[Section]) -> None:
    for section in sections:
        for row, strip in enumerate(section.strips, 1):
            for column, panel in enumerate(strip.panels, 1):
                ending = "png" if panel.is_figure else "jpg"
                write_atomically(folder / f"{section.method}-{row}-{column}.{ending}", panel.encoded())
