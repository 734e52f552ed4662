"""`import convattn` stays light: no extra, and no third-party module beyond those of timm but a short list."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
ALLOWED = {"convattn", "safetensors", "timm", "torch", "torchvision", "rich", "tyro"}

LOADED = """
import json, sys
import timm
before = set(sys.modules)
import convattn
print(json.dumps({"timm": sorted(before), "new": sorted(set(sys.modules) - before)}))
"""


def loaded_modules() -> dict[str, list[str]]:
    result = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return json.loads(result.stdout)  # nothing else is printed


def top_level(modules: list[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


def extra_modules() -> set[str]:
    """Top-level modules of every package that an extra installs and the package itself does not need."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.split(r"[\\[<>=~! ]", requirement)[0] for requirement in requirements}
        return {name.lower() for name in found} - {"convattn"}

    extras = set().union(*(names(packages) for packages in project["optional-dependencies"].values()))
    modules: set[str] = set()
    for extra in extras - names(project["dependencies"]):
        try:
            files = importlib.metadata.files(extra) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of the mobile extra, say
        modules |= {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}
    return modules


def test_import_loads_no_extra_and_little_else():
    loaded = loaded_modules()
    extras = extra_modules()
    assert {"accelerate", "onnx", "sklearn", "captum", "transformers"} <= extras  # the list is not empty by mistake
    assert top_level(loaded["new"]) & extras == set()
    assert top_level(loaded["new"]) <= ALLOWED | top_level(loaded["timm"])
