"""What a task is: the words in which the loop, the commands, the report and the export speak with a room.

A task room (`classification`, …) is one object with the names of `TaskRoom`; `convattn.rooms` finds it by its kind.
Everything here is a protocol or plain data, and imports nothing of the rooms. A person's way through it:

    room.open_training(config)     Dataset, Dataset         images and what is to be said of them
    room.build_model(…)            nn.Module                knows its input and its names
    room.training_transform(…)     image, target -> tensor, target; `evaluation_transform` for the others
    room.build(…)                  Task                     losses of a batch; a meter over many
    room.examine(model, …)         Examiner -> Findings     `convattn eval`
    room.predict(model, …)         Prediction               `convattn predict`, of one image each
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from convattn.config_errors import ConfigError

if TYPE_CHECKING:  # whoever asks for words alone waits for neither
    import torch
    from PIL import Image
    from torch import Tensor, nn

__all__ = [
    "Batch",
    "Dataset",
    "Examiner",
    "Findings",
    "Meter",
    "Metric",
    "NoOptions",
    "PairTransform",
    "Pairs",
    "Prediction",
    "RoomData",
    "RoomWords",
    "Table",
    "Target",
    "Task",
    "TaskOptions",
    "TaskRoom",
]


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading of their own; the first cell of a row names it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()  # columns that hold numbers, set to the right
    note: str = ""  # a sentence above it

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"row {row} of {self.title!r} has {len(row)} cells for {len(self.columns)} columns")


@dataclass(frozen=True)
class Metric:
    """A figure of a model on a set of images: how it is shown, compared and chosen by."""

    name: str  # in logs and JSON
    title: str  # for people, as in "Top-1"
    unit: str = ""  # follows the number, as in "%"
    greater_is_better: bool = True
    digits: int = 2  # behind the point
    lowest: float | None = None  # what it cannot fall below, for axes
    highest: float | None = None

    def text(self, value: float | None) -> str:
        """The figure for people, as in "97.50 %"; a dash for what was not measured."""
        if value is None:
            return "–"
        return f"{value:.{self.digits}f}{f' {self.unit}' if self.unit else ''}"

    def is_better(self, value: float, than: float) -> bool:
        """Whether one figure is better than another."""
        return value > than if self.greater_is_better else value < than


@dataclass(frozen=True)
class Pairs:
    """What two forms of a model found in images, side by side, so that it can be compared number by number."""

    got: list[Tensor]  # of each output those rows that have a partner
    want: list[Tensor]  # the partners, in the same order
    share: float  # of all that was found, 0 to 1: what has a partner
    scales: list[float | None]  # of each output what differences are compared with: 1 of probabilities; None: the peak


class Target(Protocol):
    """What is to be said of the images of one batch: labels (B,), label maps (B, H, W), boxes of each.

    A tensor is one.
    """

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self: ...

    def pin_memory(self) -> Self: ...

    def __getitem__(self, images: slice) -> Self: ...


@dataclass(frozen=True)
class Batch:
    """Images as a model takes them, with what is to be said of them."""

    images: Tensor | list[Tensor]  # (B, 3, H, W), normalised; of several sizes each (3, H, W)
    targets: Any  # Target
    paths: list[str]  # B names
    unreadable: dict[str, str] = field(default_factory=dict)  # file -> why; these are not among the B images
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of each file's picture

    def to(self, device: torch.device, memory_format: torch.memory_format | None = None) -> Batch:
        """The same batch on another device, its images in `memory_format` where they are of one size."""
        if isinstance(self.images, list):
            images: Any = [image.to(device, non_blocking=True) for image in self.images]
        else:
            images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        return replace(self, images=images, targets=self.targets.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies while others work; PyTorch's loader asks."""
        several = isinstance(self.images, list)
        images: Any = [image.pin_memory() for image in self.images] if several else self.images.pin_memory()  # type: ignore[union-attr]
        return replace(self, images=images, targets=self.targets.pin_memory())

    def first(self, images: int) -> Batch:
        """The first so many images alone."""
        part = slice(images)
        return Batch(self.images[part], self.targets[part], self.paths[part], sizes=self.sizes[part])

    def __len__(self) -> int:
        return len(self.paths)


class Dataset(Protocol):
    """Images with what is to be said of them, read one at a time."""

    @property
    def paths(self) -> Sequence[str]:
        """One per image: where it is, or a name for it."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""

    def target(self, index: int) -> Any:
        """What is to be said of it, as it was given: a label, a label map, boxes; ImageError as `read`."""


PairTransform = Callable[[Any, Any], tuple[Any, Any]]  # PIL RGB, target -> (3, H, W) normalised, target


class Meter(Protocol):
    """Adds up figures over batches. It takes as much memory for a million images as for one.

    One that inherits this has its default.
    """

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """What the model gives for a batch, both on the device; what `model(images)` is by default."""
        return model(batch.images)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Look at what `run` gave for a batch, in float32; both on the device, which is not waited for."""

    def parts(self) -> dict[str, Any]:
        """What several processes exchange: tensors, which are summed over them, and lists, which are joined."""

    def result(self, parts: Mapping[str, Any]) -> dict[str, float]:
        """The figures by the names of their metrics, from the parts of all processes; not numbers without an image."""


class Task(Protocol):
    """What a model learns in a run, and by what it is judged. One that inherits this has its defaults."""

    def start_epoch(self, epoch: int) -> None:
        """Called by the loop before epoch `epoch`, from 0; nothing by default."""
        return

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean losses of a training batch by name, scalars: the step is taken on their sum, each is logged.

        Under autocast the networks run in lower precision; what follows their outputs does not.
        """

    def blank(self, device: torch.device) -> Batch:
        """A batch of which nothing is learnt, for a process without a readable image."""

    def head(self, model: nn.Module) -> nn.Module:
        """What learns while the rest of the model is frozen."""

    def meter(self) -> Meter:
        """A fresh one for the validation images."""

    def state(self) -> dict[str, Any]:
        """What `TaskRoom.rebuild` needs beside configuration and model: tensors, numbers, texts; nothing by default."""
        return {}


class Prediction(Protocol):
    """What a model says of one image. One that inherits this has its default."""

    def as_json(self) -> dict[str, Any]:
        """As plain numbers and texts."""

    def rows(self) -> list[dict[str, Any]]:
        """The same flat, one row for each thing that was found: for a table."""

    def line(self) -> str:
        """In one line for people."""

    def draw(self, picture: Image.Image) -> Image.Image:
        """The picture it is about, with what was found in it."""

    def files(self) -> dict[str, bytes]:
        """What is written beside the drawing, by the ends of names: nothing by default."""
        return {}


class Findings(Protocol):
    """What an evaluation has found."""

    def figures(self) -> dict[str, float]:
        """By the names of the room's metrics."""

    def as_json(self) -> dict[str, Any]:
        """As plain numbers and texts."""

    def lines(self) -> Sequence[tuple[str, str]]:
        """A title and a sentence each, for people."""

    def tables(self) -> Sequence[Table]:
        """Beside the lines: one row a class, if that was asked for."""

    def page(self) -> dict[str, Any]:
        """For a page, by the names of `convattn.page.Report`'s fields: tables, pictures, what is taken for what.

        It may run the model on some of the images again, to show where it looks.
        """


class Examiner(Meter, Protocol):
    """Looks closer than a meter: at each image, as `convattn eval` shows it."""

    def findings(self, parts: Mapping[str, Any]) -> Findings:
        """What it found, from the parts of all processes."""


@dataclass(frozen=True)
class TaskOptions:
    """How a task is learnt: the part of a run's configuration that its room owns."""

    kind: ClassVar[str]
    places: ClassVar[Sequence[str]] = ()  # fields, dotted, that name files or folders
    model_places: ClassVar[Sequence[str]] = ()  # of these, those that may be the name of a model instead
    moved: ClassVar[Mapping[str, str]] = {}  # where fields of a run stood in earlier versions -> their names

    @property
    def batch_multiple(self) -> int:
        """Batches hold a multiple of so many images."""
        return 1

    def check(self, run: Any) -> None:
        """Raise ConfigError for what does not go with the rest of the run's configuration."""


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""


@dataclass(frozen=True)
class RoomWords:
    """What can be said of a task without importing torch: a command's help, the columns of a table."""

    training: type[TaskOptions]
    evaluation: type  # dataclasses without required fields: the options of `convattn eval`, and of `predict`
    prediction: type
    metrics: tuple[Metric, ...]  # what a meter's result holds; the first chooses the best model
    export: type = NoOptions  # the options of `convattn export`
    check: type = NoOptions  # and of `convattn data check`
    data: str | None = None  # a module with the names of `RoomData`; imported when it is asked for
    recipe: str | None = None  # for data of one's own, where no other is named
    head: str | None = None  # the field of `training` that says what stands on the backbone

    def network(self, backbone: str, options: Mapping[str, Any]) -> str:
        """The name of a run's network, from that of its backbone and the options of the task."""
        head = None if self.head is None else options.get(self.head)
        return backbone if head is None else f"{backbone} with {head}"


class RoomData(Protocol):
    """How a task's data lie on disk, and what may be wrong with them: a module, which needs no torch."""

    SIDE: int  # pixels of a picture on the contact sheet

    def recognises(self, source: str) -> bool:
        """Whether data of this task lie there and those of no other, by names alone: no image is opened."""

    def open_splits(self, source: str, validation: str | None = None, options: Any = None) -> Any:
        """The splits as training opens them, `convattn.data.check.Opened`; DataError if nothing can be looked at.

        Args:
            source: where they are.
            validation: as `data.validation` of a run.
            options: of `RoomWords.check`.
        """

    def check_data(self, opened: Any, on_images: Callable[[int], None] | None = None) -> Any:
        """Look at every image and its target, `convattn.data.check.DataCheck`; tells how many more are done."""

    def picture(self, data: Any, index: int) -> Image.Image:
        """An image with what is said of it, in RGB; ImageError if it cannot be read."""


class TaskRoom(Protocol):
    """One task: an object of which `convattn.rooms` has the only list. One that inherits this has its defaults."""

    kind: str
    words: RoomWords

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What a meter's result holds; the first chooses the best model."""
        return self.words.metrics

    # Networks

    def create(self, name: str, **options: Any) -> nn.Module:
        """The network of that name, as `create_model`; with `built_as`, from which a file builds it again."""

    def build_model(self, config: Any, data: Any) -> nn.Module:
        """The model of a run's configuration for such data; it knows its input and its names. By default any data's.

        Raises:
            ConfigError, CheckpointError: if it cannot be built so.
        """
        return self.create(config.model.name, **config.model.options)

    def names(self, model: nn.Module) -> list[str] | None:
        """What the model's outputs are called, in order; None where nobody has said it."""
        cfg: Any = model.pretrained_cfg or {}
        return None if cfg.get("label_names") is None else list(cfg["label_names"])

    # Data

    def open_training(self, config: Any) -> tuple[Any, Any]:
        """The images of a run: those to train on, None for a pipe, and those to validate on; DataError otherwise."""

    def open_stream(self, config: Any, transform: PairTransform, data: Any, **share: Any) -> Any:
        """A loader of what can only be read from its beginning; `data` are the validation images."""
        raise ConfigError(f"{config.data.source}: the task {self.kind} is not trained from a pipe; name files")

    def open_evaluation(self, source: str, model: nn.Module, options: Any, run: Any = None) -> Any:
        """Images to evaluate a model on, their targets in its terms; DataError otherwise.

        Args:
            source: where they are.
            model: whose terms.
            options: of `words.evaluation`.
            run: the configuration of the run that `source` is from, if it is.
        """

    def further_evaluation(
        self, source: str, config: Any, model: nn.Module, validation: Any
    ) -> tuple[Any, Callable[[], Meter]]:
        """One of a run's `data.evaluations`: images, targets in the model's terms, and what makes a meter for them."""
        options = self.words.evaluation()
        data = self.open_evaluation(source, model, options)
        return data, lambda: self.examine(model, data, source, options)

    def order(self, config: Any, train: Any) -> Any:
        """What makes the order of the training images, as `TrainingLoader.order`; None for one that is shuffled."""
        return None

    def collate(self, targets: list[Any]) -> Any:
        """The targets of a batch, one or more, as the transform left them; numbers and tensors of a size by default."""
        from torch.utils.data import default_collate

        return default_collate(targets)

    def training_transform(self, model: nn.Module, config: Any) -> PairTransform:
        """The random one."""

    def evaluation_transform(self, model: nn.Module, options: Any = None) -> PairTransform:
        """The one that the weights of `model` expect; with `options`, of `words.evaluation`, as they look at images."""

    def left_out(self, data: Any, unreadable: Collection[str]) -> list[str]:
        """What cannot be judged without these files, a line each; by default nothing is told."""
        return []

    def fitted(self, config: Any, train: Any) -> tuple[Any, list[str]]:
        """A new run's configuration with what it leaves open chosen by the training images, a line for each choice."""
        return config, []

    def remarks(self, config: Any, train: Any, validation: Any) -> list[str]:
        """What the user should know of a run's images before it begins, a line each; by default nothing is told."""
        return []

    # Runs

    def build(
        self,
        config: Any,
        model: nn.Module,
        train: Any,
        validation: Any,
        device: torch.device,
        note: Callable[[str], None],
    ) -> Task:
        """The task of a run; by default what `rebuild` makes of no state.

        Args:
            config: of the run.
            model: that learns.
            train: the training images; None for a pipe.
            validation: those to validate on.
            device: where it trains.
            note: shows one line to the user.

        Raises:
            ConfigError: if the options do not go with model and data.
        """
        return self.rebuild(config, model, {})

    def rebuild(self, config: Any, model: nn.Module, state: Mapping[str, Any]) -> Task:
        """The same task from its `state()`, on the CPU."""

    # Use

    def examine(self, model: nn.Module, data: Any, source: str, options: Any) -> Examiner:
        """Whatever `convattn eval` shows of a model from `source` on such images."""

    def predict(
        self,
        model: nn.Module,
        pictures: Sequence[Image.Image],
        options: Any,
        on_part: Callable[[float], None] = lambda pictures: None,
    ) -> Sequence[Prediction]:
        """What the model says of RGB pictures of any sizes.

        Args:
            model: in evaluation mode.
            pictures: RGB.
            options: of `words.prediction`.
            on_part: called with how many more pictures are done, parts of one too, where that takes its time.
        """

    def files_of_all(self, found: Sequence[Mapping[str, Any]], model: nn.Module) -> dict[str, bytes]:
        """What `convattn predict` writes once beside the files of each picture, by name; nothing by default.

        Args:
            found: of each picture its name, `image`, and the entries of `Prediction.as_json`.
            model: that said so.
        """
        return {}

    # Exported files

    def for_export(self, model: nn.Module, options: Any) -> nn.Module:
        """What is written of a model, by options of `words.export`; by default the model itself."""
        return model

    def numbers(self, model: nn.Module) -> nn.Module | None:
        """Of what `for_export` gave, all that is computed before anything is decided, as a network of its own.

        None, the default, if the outputs are such numbers themselves. Rounding moves numbers a little, but what is
        decided by comparing them, such as which boxes are kept, is the same or another. So a file of such a model is
        compared in two parts: its numbers, in a second file that is written alike and thrown away, and what it finds,
        by `paired`. The network's `in_float32` names modules that stay in float32 where others get 8 bits.
        """
        return None

    def paired(self, got: Sequence[Tensor], want: Sequence[Tensor], exact: bool = True) -> Pairs | None:
        """What two forms found, each beside its partner (`exact`: in 32 bits); by default None: as it is."""
        return None

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """What an exported file has to say of its model, for JSON; `load_exported`'s model has it as attributes."""
        return {}

    def check_description(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """What stands in a file of anybody's, with texts and numbers of the right kind; ValueError otherwise."""
        if described:
            raise ValueError(f"the task {self.kind} describes nothing, and this is {sorted(described)[:5]}")
        return {}

    def agreement(self, got: Sequence[Tensor], want: Sequence[Tensor]) -> dict[str, float]:
        """How often two forms of a model say the same of images, 0 to 1 by title: beside the error of the numbers."""
        return {}
