"""Everything that `import convattn` offers."""

from convattn import backbones as _backbones  # registers every family  # noqa: F401
from convattn import explain as explain  # a room of functions: convattn.explain.grad_cam, …
from convattn.backbones.registry import create_model, list_models
from convattn.bench.compare import benchmark
from convattn.bench.count import count
from convattn.data.transforms import transforms_for
from convattn.deploy.export import export
from convattn.deploy.fuse import fuse
from convattn.deploy.load import load_exported
from convattn.deploy.prepack import prepack
from convattn.detection.create import create_detector
from convattn.model_files import open_model
from convattn.prediction import predict
from convattn.segmentation.segmenter import create_segmenter
from convattn.surgery import attach, detach, replace
from convattn.weights.load import load_official
from convattn.weights.official import to_official

__all__ = [
    "attach",
    "benchmark",
    "count",
    "create_detector",
    "create_model",
    "create_segmenter",
    "detach",
    "export",
    "fuse",
    "list_models",
    "load_exported",
    "load_official",
    "open_model",
    "predict",
    "prepack",
    "replace",
    "to_official",
    "transforms_for",
]
