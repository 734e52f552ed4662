"""What OpenVINO's plug-in makes of a file on this machine."""

from collections import Counter
from pathlib import Path

from convattn.deploy.runtimes import openvino


def executed(path: Path) -> dict[tuple[str, str], int]:
    """(kind, precision of the kernel) and how often each occurs."""
    nodes = [node.get_rt_info() for node in openvino._compiled(path).get_runtime_model().get_ops()]
    kinds = [(node["layerType"].astype(str), node["primitiveType"].astype(str)) for node in nodes]
    # A kernel is called brgconv_avx512_f32 or the like. The node's own precision is that of the weights in the file.
    found = Counter((kind, kernel.rpartition("_")[2].lower()) for kind, kernel in kinds if kind != "Const")
    return dict(sorted(found.items()))
