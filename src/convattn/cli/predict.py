"""`convattn predict`: what a model says of images."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from convattn.atomic import write_atomically
from convattn.cli.console import notes, say, warn
from convattn.cli.options.predict import TABLES
from convattn.model_files import open_model
from convattn.prediction import Predicted, predicted
from convattn.rooms import room_of
from convattn.shown import shown

__all__ = ["command"]


def command(options: Any) -> int:
    """Run `convattn predict` with these options; returns the exit status, 1 if an image could not be read."""
    drawn = options.output is not None and options.output.suffix not in TABLES
    said, failed = [], False
    for each in _predicted(options):
        if each.prediction is None:
            warn(each.problem)
            failed = True
            continue
        if drawn:
            _draw(options.output, each)
        said.append(replace(each, picture=None))  # of thousands of images only what was said is kept
        if not options.json and options.output is None:
            say(f"{each.name}: {each.prediction.line()}")
    found = [{"image": each.name, **each.prediction.as_json()} for each in said if each.prediction is not None]
    if options.output is not None and not drawn:
        as_lines = "".join(f"{json.dumps(entry)}\n" for entry in found)
        write_atomically(options.output, (_csv(said) if options.output.suffix == ".csv" else as_lines).encode())
    if options.json:
        print(json.dumps(found))
    elif options.output is not None:
        say(str(options.output))
    return 1 if failed else 0


def _predicted(options: Any) -> Iterator[Predicted]:
    model = open_model(options.model)
    room = room_of(model, options.model)
    asked = {field.name: getattr(options, field.name) for field in fields(room.words.prediction)}
    return predicted(model, options.images, batch_size=options.batch_size, console=notes(), **asked)


def _draw(folder: Path, each: Predicted) -> None:
    """Write the picture under its own name; where two are called alike, the second gets a number."""
    assert each.picture is not None and each.prediction is not None
    buffer = io.BytesIO()
    each.prediction.draw(each.picture).save(buffer, "JPEG", quality=92)
    name = Path(each.name).stem
    path, number = folder / f"{name}.jpg", 2
    while path.exists():
        path, number = folder / f"{name}-{number}.jpg", number + 1
    write_atomically(path, buffer.getvalue())


def _csv(said: Sequence[Predicted]) -> str:
    rows = [{"image": shown(each.name), **row} for each in said if each.prediction for row in each.prediction.rows()]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
