"""`convattn convert`: the authors' checkpoint under this package's names."""

import warnings
from typing import Any

from convattn.backbones.recognise import recognise
from convattn.cli.console import say
from convattn.cli.options.convert import Options
from convattn.json_text import json_text
from convattn.model_files import save_model
from convattn.weights.find import find_weights
from convattn.weights.load import load_official
from convattn.weights.official import shapes_by_name
from convattn.weights.read import read_checkpoint

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn convert` with these options."""
    content = read_checkpoint(options.source)
    found = recognise(content, str(options.source))
    model = found.build()
    with warnings.catch_warnings(record=True, action="always") as caught:  # told below
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
        print(json_text(facts, indent=2))
    else:
        chosen = "".join(f", {key}={value}" for key, value in found.options.items())
        say(f"{options.source}: {found.name}{chosen}, {facts['parameters']:,} parameters in {len(state)} entries")
        for note in notes:
            say(note)
        say(f"written to {options.target}")
    return 0
