"""The options of detection, and what its figures are called: known without torch, as help and tables need them."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from convattn.config_errors import check
from convattn.detection.average_precision import BOX_METRICS, MASK_METRICS
from convattn.detection.variation import Variation
from convattn.task import RoomWords, TaskOptions

__all__ = [
    "METRICS",
    "WORDS",
    "CheckOptions",
    "DetectionOptions",
    "DetectorName",
    "EvaluationOptions",
    "FlavourName",
    "PredictionOptions",
    "Style",
]

DetectorName = Literal[
    "faster_rcnn",
    "mask_rcnn",
    "cascade_rcnn",
    "cascade_mask_rcnn",
    "retinanet",
    "atss",
    "sparse_rcnn",
    "dino",
    "dino_nano",
]
Style = Literal["mmdet", "detectron2"]
FlavourName = Literal["detrex", "mmdet"]


@dataclass(frozen=True)
class DetectionOptions(TaskOptions):
    """How objects are found, and what helps to learn it."""

    kind: ClassVar[str] = "detection"

    detector: DetectorName = "faster_rcnn"
    """What stands on the backbone's levels; those with `mask` in their name learn and draw outlines."""
    style: Style = "mmdet"
    """Whose arithmetic R-CNN follows."""
    box_head: Literal["2fc", "4conv1fc"] | None = None
    """Of R-CNN: two linear layers, or four convolutions and one; 2fc in mmdet's style, 4conv1fc in detectron2's."""
    flavour: FlavourName | None = None
    """Whose arithmetic DINO follows; detrex's by default."""
    width: int | None = None
    """Channels of the neck and of what is behind it; 256 by default, 128 of dino_nano."""
    hidden: int | None = None
    """Channels of R-CNN's linear layers, 1024 by default; of DINO's and Sparse R-CNN's, 2048 (512 of dino_nano)."""
    layers: int | None = None
    """Of DINO's encoder and of its decoder, or stages of Sparse R-CNN; 6 by default, 3 of dino_nano."""
    queries: int | None = None
    """Of DINO: objects that can be found in an image; 900 by default, 100 of dino_nano."""
    proposals: int | None = None
    """The same of Sparse R-CNN; 300 by default."""
    heads: int | None = None
    """Of the attention of DINO and Sparse R-CNN; 8 by default."""
    points: int | None = None
    """Of DINO: places that a query looks at on each level with each head; 4 by default."""
    levels: int | None = None
    """Of DINO, 2 to 5; 4 by default."""
    denoising: int | None = None
    """Of DINO: about how many pairs of denoising queries an image gets; 100 by default."""
    frozen_stages: int = 0
    """How many parts of the backbone do not learn, from the stem on: 1 is the stem, 2 the first stage too."""
    frozen_norms: bool = False
    """Batch norms of the backbone keep their statistics and weights; lets a process train on one image at a time."""
    scale: tuple[int, int] | None = (1333, 800)
    """Images are seen as large as fits into these: the longest and the shortest side; `None`: chosen by the images of a
    new run, with the sides of the variation."""
    variation: Variation = field(default_factory=Variation)
    """How training images are varied."""
    without_objects: bool = True
    """Train on images without objects, too: nothing in them is background."""
    score_threshold: float | None = None
    """What is found has a score above it; 0.05 by default, 0 of DINO and Sparse R-CNN."""
    max_detections: int | None = None
    """In an image; 100 by default, 300 of DINO, as many as proposals of Sparse R-CNN."""

    @property
    def masks(self) -> bool:
        """Whether outlines are learnt."""
        return "mask" in self.detector

    def __post_init__(self) -> None:
        check(self.frozen_stages >= 0, f"task.frozen_stages {self.frozen_stages} must be 0 or more")
        if self.scale is not None:
            longest, shortest = self.scale
            check(
                1 <= shortest <= longest, f"task.scale {longest} {shortest} must be the longest side, then the shortest"
            )
        check(
            self.masks or not self.variation.copy_paste,
            f"task.variation.copy_paste copies objects by their outlines, which {self.detector} does not learn: "
            "take task.detector mask_rcnn, or leave it out",
        )

    def check(self, run: Any) -> None:
        """Raise ConfigError for what does not go with the rest of the run's configuration."""
        check(
            run.data.image_size is None,
            f"data.image_size {run.data.image_size} has no effect on a detector, which sees images of many sizes: set "
            "task.scale and task.variation.short-sides",
        )
        check(
            not run.loop.compile,
            "loop.compile compiles a network anew for every size of images, and a detector learns from many; leave it "
            "out",
        )


@dataclass(frozen=True)
class EvaluationOptions:
    """What is looked at, and how."""

    per_class: bool = False
    """Show each class."""


@dataclass(frozen=True)
class PredictionOptions:
    """What is shown of what is found."""

    score: float = 0.3
    """The least score of what is shown; `convattn eval` tells at which precision and recall are balanced best."""
    only: tuple[str, ...] = ()
    """Names of the classes to show; all by default."""
    tile: int | None = None
    """Look at windows with sides of so many pixels of the picture instead of the whole: for small objects in large
    pictures."""
    overlap: float = 0.2
    """The share of a window that the next one shows again; should hold the largest object."""
    show: Literal["objects", "queries"] = "objects"
    """What is found; or, of sparse_rcnn and dino, how its queries have come to it: their boxes from layer to layer, and
    the places that they read."""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"--score {self.score} must be between 0 and 1")
        if self.tile is not None and self.tile < 32:
            raise ValueError(f"--tile {self.tile} must be 32 or more")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"--overlap {self.overlap} must be at least 0 and below 1")
        if self.show not in ("objects", "queries"):
            raise ValueError(f"--show {self.show} is unknown; choose objects or queries")
        if self.show == "queries" and self.tile is not None:
            raise ValueError("--show queries looks at whole pictures; leave out --tile")


@dataclass(frozen=True)
class CheckOptions:
    """What `convattn data check` may be told of images with objects."""

    masks: bool = False
    """Look at outlines too, as training with masks does."""


_LOGGED = ("ap", "ap50", "ap75", "ar100")  # `convattn eval` tells the rest
METRICS = tuple(
    metric
    for pair in zip(BOX_METRICS, MASK_METRICS, strict=True)
    for metric in pair
    if metric.name.partition("_")[2] in _LOGGED
)

WORDS = RoomWords(
    DetectionOptions,
    EvaluationOptions,
    PredictionOptions,
    METRICS,
    check=CheckOptions,
    data="convattn.detection.data_check",
    recipe="detect_finetune",
    head="detector",
)
"""What the training loop needs to know of detection."""
