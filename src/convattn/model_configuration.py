"""A model with options as a small JSON file, whose path stands wherever a model's name is taken.

{"name": "hybrid", "options": {"mixers": ["cot", "cot", "sam+e_mhsa", "e_mhsa"], "depths": [1, 1, 4, 1]}}
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convattn.atomic import write_atomically
from convattn.config_errors import ConfigError, check
from convattn.json_text import with_tuples

__all__ = ["is_configuration", "read_configuration", "write_configuration"]

_SUFFIX = ".json"


def is_configuration(name: str) -> bool:
    """Whether a model's name is the path of such a file."""
    return name.endswith(_SUFFIX)


def read_configuration(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The name and the options of the model, which `create_model` understands; ConfigError if there are none."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: no configuration of a model: {reason}") from None
    is_one = isinstance(content, dict) and content.keys() == {"name", "options"}
    check(
        is_one and isinstance(content["name"], str) and isinstance(content["options"], dict),
        f'{path}: no configuration of a model; it must be {{"name": NAME, "options": {{…}}}}',
    )
    name = content["name"]
    check(not is_configuration(name), f"{path}: its model is {name!r}, another file; name the model itself")
    return name, with_tuples(content["options"])


def write_configuration(path: Path, name: str, options: Mapping[str, Any]) -> None:
    """Write one in one step; raises OSError if it cannot be written."""
    write_atomically(path, (json.dumps({"name": name, "options": dict(options)}, indent=2) + "\n").encode())
