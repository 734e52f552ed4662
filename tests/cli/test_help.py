import re
from dataclasses import dataclass

import pytest

from convattn.bench.runtimes import runtime_names
from convattn.cli.arguments import parse
from convattn.cli.main import COMMANDS, main
from convattn.data.images import FORMATS as IMAGE_FORMATS
from convattn.deploy.formats import formats
from convattn.deploy.load import exported_suffixes
from convattn.deploy.suffixes import SUFFIXES


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([*words])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "300"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_no_types_of_python_and_no_switch_twice(name, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    for word in ("--help", "-h", "--help-all"):
        page = help_of(capsys, name, word)
        assert "None}" not in page and "{None" not in page
        assert not re.search(r"--(\S+)\b.*--no-\1\b", page)
        assert "(default: None)" not in page and "(required)" not in page
        options = page[page.index("Examples:") :].partition("\n\n")[2]
        assert max(map(len, options.splitlines())) <= min(int(columns), 120)


def test_help_of_training_is_short_and_the_rest_is_counted(capsys):
    page, whole = help_of(capsys, "train", "--help"), help_of(capsys, "train", "--help-all")
    assert len(page) < 3_000 < len(whole)
    every = re.findall(r"^  (--[a-z.-]+)", whole, flags=re.MULTILINE)
    shown = re.findall(r"^  (--[a-z][a-z.-]+) ", page, flags=re.MULTILINE)
    assert len(every) == len(set(every)) > 60
    common = [name for name in shown if name in every]
    assert len(common) == 10
    hidden = sum(int(number) for number in re.findall(r"\((\d+) options?\)", page))
    assert hidden + len(common) == len(every)
    assert re.search(r"--optimizer\.… +How the weights are moved\. \(11 options\)", page)


def test_help_of_a_recipe_with_published_weights_tells_how_to_do_without(capsys):
    page = help_of(capsys, "train", "segment_finetune", "--help")
    assert re.search(
        r"^  --model\.no-pretrained +Start from the published weights\. \(on by default\)", page, re.MULTILINE
    )


def test_files_are_named_by_the_lists_that_are_gone_by(capsys):
    assert {name: runtime.SUFFIX for name, runtime in formats().items()} == SUFFIXES
    for words, named in (
        (["predict"], [*IMAGE_FORMATS, *exported_suffixes(), ".safetensors"]),
        (["eval"], [*IMAGE_FORMATS, *exported_suffixes(), ".safetensors"]),
        (["data", "check"], IMAGE_FORMATS),
        (["export"], [*formats(), *exported_suffixes()]),
        (["bench"], runtime_names()),
    ):
        page = set(re.split(r"[\s(),;:]+|\.\s", help_of(capsys, *words, "--help")))
        assert set(named) <= page, words


def test_usage_says_what_to_write(capsys):
    for words in (["data", "--help"], ["data", "check", "--help"]):
        assert help_of(capsys, *words).startswith("usage: convattn data check DIR [OPTIONS]\n")
    assert help_of(capsys, "predict", "--help").startswith("usage: convattn predict MODEL IMAGE... [OPTIONS]\n")
    assert help_of(capsys, "models", "--help").startswith("usage: convattn models [NAME] [OPTIONS]\n")


@dataclass(frozen=True)
class Options:
    """None of these."""

    width: float | None = None
    """Of it."""
    size: tuple[int, int] | None = None
    """Both; `(default: None)` stays where it is text."""
    names: tuple[str, ...] = ()
    """All of them."""
    fast: bool = True
    """Saves time."""
    safe: bool = False
    """Saves sweat."""
    kind: str = "two words"
    """Which."""


def test_calls_and_defaults_are_in_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], command="try", description="Does it.\n")
    assert (
        capsys.readouterr().out
        == """usage: convattn try [OPTIONS]

Does it.

options:
  --width FLOAT   Of it.
  --size INT INT  Both; `(default: None)` stays where it is
                  text.
  --names STR...  All of them.
  --no-fast       Saves time. (on by default)
  --safe          Saves sweat.
  --kind STR      Which. (default: 'two words')
  -h, --help      Show this page.
"""
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing action, there is check; see convattn data --help"),
        (["chek", "a"], "unknown action 'chek', there is check; see convattn data --help"),
        (["check"], "missing DIR; see convattn data check --help"),
        (["check", "a", "--jsn"], "unrecognized options: --jsn; nearest: --json; see convattn data check --help"),
    ],
)
def test_data_asks_for_its_action(words, message, capsys):
    assert main(["data", *words]) == 2
    assert capsys.readouterr().err == f"convattn data: {message}\n"
