"""Files as the authors' scripts write them, from models with random weights."""

import sys
import types
from pathlib import Path
from typing import Any

import torch

import convattn
from toys import build_toy

TOY = "smt_large"  # has every kind of entry: layer scale too


def official_toy(**options: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A toy model and its weights under the authors' names."""
    model = build_toy(TOY, **options)
    return model, convattn.to_official(model)


def save_with_yacs_node(content: dict[str, Any], path: Path) -> None:
    """Save with a `yacs.config.CfgNode` under `config`, as the authors do; reading it must not need yacs."""

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules.update({"yacs": package, "yacs.config": module})
    try:
        node = CfgNode(MODEL=CfgNode(TYPE="smt", DROP_PATH_RATE=0.1), AMP=True, TAGS=["a", "b"])
        node.__dict__["__immutable__"] = True  # yacs keeps its state there
        torch.save({**content, "config": node}, path)
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
