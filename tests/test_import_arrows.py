"""Which way imports point: a room uses the rooms listed behind it and no other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import convattn

PACKAGE = Path(convattn.__file__).parent

# Single files that any room may use: they know nothing of the others.
COMMON = {
    "atomic",
    "config_errors",
    "evaluation",
    "extras",
    "json_text",
    "library_words",
    "model_configuration",
    "nearest",
    "page",
    "rooms",
    "seeding",
    "shown",
    "size_option",
    "sizes",
    "task",
    "version",
    "walk",
}

# What a task may know: the parts, the backbone contract, the samples, files of models (a teacher is one),
# what shows where a model looked.
_TASK = {"ops", "mixers", "backbones", "weights", "data"}
TASKS = {"classification", "detection", "segmentation"}

# Room -> the rooms it may import. Those of later work are listed too: the table is the design, not a description.
ARROWS: dict[str, set[str]] = {
    "ops": set(),
    "weights": {"ops"},
    "data": set(),
    "mixers": {"ops"},
    "backbones": {"ops", "mixers", "weights"},
    "surgery": {"ops", "mixers", "backbones"},
    "model_files": {"backbones", "weights", "surgery", "deploy", "data"},
    **dict.fromkeys(TASKS, _TASK | {"model_files", "explain"}),
    "prediction": {"data"},  # pictures from wherever they are
    "training": _TASK | TASKS | {"model_files", "surgery"},
    "deploy": {"ops", "backbones", "data"},  # photographs to compare on, the transform that a file describes
    "bench": {"ops", "backbones", "deploy", "model_files"},  # it times the forms that deploy makes, of models and files
    "explain": {"ops", "backbones", "surgery"},  # levels and blocks of networks that do not state them
    "recipes": _TASK | TASKS | {"training"},
}
_ALL_BELOW = set(ARROWS)
ARROWS["report"] = _ALL_BELOW
ARROWS["ablation"] = _ALL_BELOW | {"report"}
ARROWS["cli"] = _ALL_BELOW | {"report", "ablation"}
ARROWS["__main__"] = {"cli"}  # what `python -m convattn` runs
ARROWS["public"] = _ALL_BELOW  # what `import convattn` offers
ARROWS["saved"] = {"model_files"}  # its earlier name
ARROWS["starting"] = set()
ARROWS["timm"] = set()  # what `python -m convattn.timm` runs

# What everyone may know of `backbones`. The other files there are families.
CONTRACT = {"freezing", "levels", "on_levels", "pyramid", "recompute", "registry"}
MAY_NAME_A_FAMILY = {"backbones", "recipes", "ablation", "cli"}


def modules() -> list[tuple[str, ...]]:
    """Every module of the package as its path, without the package's own name: ("deploy", "fuse")."""
    return sorted(path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))


def imports(module: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The modules of the package that `module` imports anywhere in its text, in functions too."""
    tree = ast.parse(PACKAGE.joinpath(*module).with_suffix(".py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{'.'.join(module)} imports relatively; write the whole name"
            # `from convattn.a import b` may mean the module convattn.a.b
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = tuple(name.split("."))
            if parts[0] == "convattn":
                yield parts[1:]


def breaks_an_arrow(room: str, target: tuple[str, ...]) -> bool:
    """Whether a module in `room` must not import `target`."""
    if not target or target[0] == room or target[0] in COMMON:
        return False
    if room in COMMON or target[0] not in ARROWS.get(room, set()):
        return True
    names_family = target[0] == "backbones" and target[1:2] != () and target[1] not in CONTRACT
    return names_family and room not in MAY_NAME_A_FAMILY


@pytest.mark.parametrize("module", [m for m in modules() if m != ("__init__",)], ids=".".join)
def test_imports_follow_the_arrows(module):
    room = module[0]
    assert room in ARROWS or room in COMMON, f"give {room} its place in the table of arrows"
    wrong = [".".join(target) for target in imports(module) if breaks_an_arrow(room, target)]
    assert wrong == [], f"{'.'.join(module)} must not import {wrong}"


def test_the_table_has_no_circle():
    remaining = dict(ARROWS)
    while remaining:
        free = [room for room, below in remaining.items() if not below & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        for room in free:
            del remaining[room]


@pytest.mark.parametrize(
    ("room", "target"),
    [
        ("ops", "mixers.a"),
        ("weights", "backbones.registry"),
        ("data", "training.config"),
        ("deploy", "backbones.smt"),
        ("explain", "backbones.smt"),
        ("surgery", "backbones.smt"),
        ("classification", "backbones.smt"),
        ("training", "cli.main"),
        ("report", "cli.main"),
        ("extras", "ops.linear"),
        ("deploy", "training.loop"),
        ("backbones", "deploy.fuse"),
    ],
)
def test_a_forbidden_import_is_seen(room, target):
    assert breaks_an_arrow(room, tuple(target.split(".")))


def test_imports_inside_functions_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "late.py").write_text(
        "def f():\n    from convattn.cli import main\n    import convattn.data.images\n"
    )
    assert list(imports(("ops", "late"))) == [("cli", "main"), ("data", "images")]
