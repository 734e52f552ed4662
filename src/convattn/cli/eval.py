"""`convattn eval`: how good a model is on images of which the truth is known."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convattn.cli.arguments import UsageError
from convattn.cli.console import print_table, say, warn
from convattn.cli.examine import examine
from convattn.cli.options.eval import Options
from convattn.data.held_out import share_of
from convattn.deploy.load import ExportedModel
from convattn.json_text import json_text
from convattn.model_files import open_model
from convattn.page import Figure, Report
from convattn.report.write import write_report
from convattn.rooms import room_of
from convattn.task import Table
from convattn.training.output import check_held_out, check_place, holds_run, stored_config
from convattn.training.places import with_absolute_paths

__all__ = ["command"]


def command(options: Any) -> int:
    """Run `convattn eval` with these options, those of the model's task among them; returns the exit status."""
    source, run = _source(options)
    model = open_model(options.model)
    room = room_of(model, options.model)
    precision = _precision(options, model)
    data = room.open_evaluation(source, model, options, run)
    if run is not None:
        check_held_out(Path(options.model), run, data)
    device = "cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu"
    found = examine(
        model,
        room,
        data,
        room.examine(model, data, options.model, options),
        options,
        told=f"images of {source}",
        batch_size=options.batch_size,
        workers=options.workers,
        device=device,
        autocast=nullcontext if options.precision == "fp32" else partial(torch.autocast, device, torch.bfloat16),
    )
    findings, speed = found.findings, found.speed
    for reason in found.unreadable.values():
        warn(f"left out: {reason}")
    for line in room.left_out(data, found.unreadable):
        warn(line)
    rates = speed.images / speed.seconds, speed.images / speed.model_seconds
    lines = [*findings.lines(), ("precision", precision)]
    lines.append(("speed", f"{rates[0]:,.1f} images/s, {rates[1]:,.1f} without loading"))
    if options.output is not None:
        known = findings.figures()
        figures = tuple(Figure(m.title, m.text(known[m.name])) for m in room.metrics if m.name in known)
        said = Table("Evaluation", ("what", "figure"), tuple((title, " ".join(text.split())) for title, text in lines))
        shown_page = findings.page()
        shown_page["tables"] = (said, *shown_page.get("tables", ()))
        write_report(options.output, Report(f"{options.model} on {source}", figures=figures, **shown_page))
    if options.json:
        content = {"model": options.model, "precision": precision, **findings.as_json()}
        content |= {"images_per_second": rates[0], "model_images_per_second": rates[1]}
        print(json_text({**content, "unreadable": list(found.unreadable)}))
        return 0
    for title, text in lines:
        say(f"{title:<13}{text}")
    for table in findings.tables():
        print()
        print_table(table)
    if options.output is not None:
        say(str(options.output))
    return 0


def _source(options: Options) -> tuple[str, Any]:
    """Where the images are; by default those of the run in the folder MODEL, whose configuration comes too."""
    if options.data is not None:
        return options.data, None
    if not holds_run(Path(options.model)):
        raise UsageError(f"--data is missing, and {options.model} is no run folder that would name its own")
    stored = stored_config(Path(options.model))
    run = with_absolute_paths(stored)
    if run.data != stored.data:
        warn(f"{options.model}: stored without their folder, its images are taken from {Path.cwd()}")
    elsewhere = None if share_of(run.data.validation) else run.data.validation
    images = elsewhere or run.data.source
    check_place("data.validation" if elsewhere else "data.source", images, "--data")
    return images, run


def _precision(options: Options, model: nn.Module) -> str:
    if not isinstance(model, ExportedModel) or model.metadata is None:
        return options.precision
    own = model.metadata.precision
    if options.precision != "fp32":
        raise UsageError(
            f"--precision {options.precision} has no effect on {options.model}, which is in {own}; "
            f"export the model in {options.precision}"
        )
    return own
