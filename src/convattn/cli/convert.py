"""`convattn convert`: the authors' checkpoint under this package's names."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from convattn.backbones.recognise import recognise
from convattn.cli.arguments import UsageError, parse
from convattn.cli.console import say
from convattn.saved import save_model
from convattn.weights.find import find_weights
from convattn.weights.load import load_official
from convattn.weights.official import shapes_by_name
from convattn.weights.read import read_checkpoint

__all__ = ["command"]

_DESCRIPTION = """Read the authors' checkpoint, find out which model it is of, and write it as a model file.

The checkpoint is read without running anything that is in it. The result loads with every command here
(`convattn predict OUT.safetensors photo.jpg`) and holds the weights under this package's names.

Examples:
    convattn convert smt_tiny.pth smt_tiny.safetensors
    convattn convert smt_large_22k.pth out.safetensors --json
"""


@dataclass(frozen=True)
class Options:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The authors' file (.pth, .pt, .safetensors)."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The model file to write (.safetensors)."""
    json: bool = False
    """Print what was found as JSON."""


def command(args: list[str]) -> int:
    """Run `convattn convert` with these arguments."""
    options = parse(Options, args, command="convert", description=_DESCRIPTION)
    if options.target.suffix != ".safetensors":
        raise UsageError(f"{options.target}: the target must end in .safetensors")
    if options.target.resolve() == options.source.resolve():
        raise UsageError(f"{options.target}: the target must be another file than the source")
    content = read_checkpoint(options.source)
    found = recognise(content, str(options.source))
    model = found.build()
    with warnings.catch_warnings(record=True) as caught:  # told below
        warnings.simplefilter("always")
        load_official(model, content)
    state = find_weights(content, shapes_by_name(model)).state
    notes = [str(warning.message).removeprefix("state dict: ") for warning in caught]
    save_model(model, options.target)
    facts: dict[str, Any] = {
        "model": found.name,
        "options": found.options,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "entries": len(state),
        "dtype": str(next(iter(state.values())).dtype).removeprefix("torch."),
        "notes": notes,
        "written": str(options.target),
    }
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        chosen = "".join(f", {key}={value}" for key, value in found.options.items())
        say(f"{options.source}: {found.name}{chosen}, {facts['parameters']:,} parameters in {len(state)} entries")
        for note in notes:
            say(note)
        say(f"written to {options.target}")
    return 0
