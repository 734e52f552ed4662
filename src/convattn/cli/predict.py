"""`convattn predict`: what a model says of images."""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from convattn.atomic import write_atomically
from convattn.cli.console import notes, say, warn
from convattn.cli.options.predict import TABLES
from convattn.data.images import as_jpeg
from convattn.json_text import json_text
from convattn.model_files import open_model
from convattn.prediction import Predicted, predicted
from convattn.rooms import room_of
from convattn.shown import shown

__all__ = ["command"]

_LIST = "predictions.json"  # beside what is drawn


def command(options: Any) -> int:
    """Run `convattn predict` with these options; returns the exit status, 1 if an image could not be read."""
    into_table = options.output is not None and options.output.suffix in TABLES
    into_folder = options.output is not None and not into_table
    found: list[dict[str, Any]] = []  # of thousands of images only what was said is kept, in plain words
    rows: list[dict[str, Any]] = []
    failed = False
    model = open_model(options.model)
    room = room_of(model, options.model)
    asked = {field.name: getattr(options, field.name) for field in fields(room.words.prediction)}
    for each in predicted(model, options.images, batch_size=options.batch_size, console=notes(), **asked):
        if each.prediction is None:
            warn(each.problem)
            failed = True
            continue
        written = {"files": _write(options.output, each)} if into_folder else {}
        found.append({"image": each.name, **each.prediction.as_json(), **written})
        if into_table:
            rows += ({"image": shown(each.name), **row} for row in each.prediction.rows())
        if not options.json and options.output is None:
            say(f"{each.name}: {each.prediction.line()}")
    if into_table:
        as_lines = "".join(f"{json_text(entry)}\n" for entry in found)
        write_atomically(options.output, (_csv(rows) if options.output.suffix == ".csv" else as_lines).encode())
    elif into_folder:
        files = {_LIST: json_text(found, indent=1).encode(), **room.files_of_all(found, model)}
        for name, content in files.items():
            write_atomically(options.output / name, content)
    if options.json:
        print(json_text(found))
    elif options.output is not None:
        say(str(options.output))
    return 1 if failed else 0


def _write(folder: Path, each: Predicted) -> list[str]:
    """Draw the picture under its own name, and write what belongs to it; where two are called alike, with a number."""
    assert each.picture is not None and each.prediction is not None
    files = {".jpg": as_jpeg(each.prediction.draw(each.picture), quality=92), **each.prediction.files()}
    stem, number = Path(each.name).stem, 1
    while any((folder / f"{_numbered(stem, number)}{ending}").exists() for ending in files):
        number += 1
    for ending, content in files.items():
        write_atomically(folder / f"{_numbered(stem, number)}{ending}", content)
    return [f"{_numbered(stem, number)}{ending}" for ending in files]


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}-{number}"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
