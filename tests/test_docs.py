"""The code in README and docs runs, the commands exist, and the examples work."""

import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from convattn.cli.model_list import rows_of
from convattn.training.config import OutputConfig, RunConfig
from convattn.training.output import store_config
from models_page import PAGE, table, table_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SLOW_EXAMPLES = {"fuse_and_export.py"}  # writes ONNX, as the README does
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of each fenced block of a language."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def commands(page: Path) -> list[str]:
    """The text behind each prompt, with the lines that a backslash continues joined."""
    lines = [line for _, block in blocks(page, "console") for line in re.sub(r" *\\\n *", " ", block).splitlines()]
    return [line.removeprefix("$ ").partition("#")[0].strip() for line in lines if line.startswith("$ ")]


ids = {"ids": lambda value: value.name if isinstance(value, Path) else None}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], **ids)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, block in blocks(page, "python"):
        code = compile("\n" * (line - 1) + block, str(page), "exec")  # a failure names the page's own line
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, namespace)


@pytest.mark.parametrize(
    "example", [pytest.param(e, marks=pytest.mark.slow) if e.name in SLOW_EXAMPLES else e for e in EXAMPLES], **ids
)
def test_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(example), run_name="__main__")
    assert printed.getvalue()


@pytest.mark.parametrize("command", sorted({c for page in PAGES for c in commands(page) if c.startswith("convattn ")}))
def test_command_is_one_that_parses(command, tmp_path, monkeypatch):
    name, *words = shlex.split(command)[1:]
    monkeypatch.chdir(tmp_path)
    if "--resume" in words:  # its other arguments are checked against those of the run
        folder = words[words.index("--resume") + 1]
        store_config(replace(RunConfig(), output=OutputConfig(folder)))
    assert importlib.import_module(f"convattn.cli.options.{name}").read(words)


@pytest.mark.parametrize(
    "target", sorted({c.split()[-1] for page in PAGES for c in commands(page) if c.startswith("make")})
)
def test_make_target_exists(target):
    assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], **ids)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_table_of_models_is_what_the_command_lists():
    assert table_of(PAGE.read_text()) == table(), "run python tests/models_page.py"


def test_the_figures_of_which_model_for_what_are_those_of_the_models_named():
    section = (ROOT / "README.md").read_text().partition("## Which model for what")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == 11
    for line in lines:
        names = re.findall(r"`([a-z0-9_.]+)`", line)
        rows = [row for name in names for row in rows_of("*") if name in (row.name, row.full_name)]
        shown = {f"{row.top1} %" for row in rows} | {f"{row.cost.parameters / 1e6:.1f} M" for row in rows}
        shown |= {f"{row.cost.macs / 1e9:.3g} G" for row in rows}
        assert set(re.findall(r"\d+\.\d+ [%MG]", line)) <= shown, line
