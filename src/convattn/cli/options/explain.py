"""What `convattn explain` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convattn.atomic import check_writable
from convattn.cli.arguments import UsageError, check_at_least, parse, words_of
from convattn.cli.options.files import IMAGES
from convattn.nearest import nearest
from convattn.size_option import SizeOption

__all__ = ["METHODS", "Options", "methods_of", "read"]

# Method -> what it shows. The functions of `convattn.explain` have the same names; that package needs torch.
METHODS = {
    "grad_cam": "where the evidence for a class lies",
    "integrated_gradients": "what each pixel adds to the score of a class",
    "occlusion": "what is lost where a window is hidden",
    "sfd_score": "how much of the attention lies on the object (--masks)",
    "effective_receptive_field": "which pixels count for the middle of the last map, with a table of areas",
    "relative_receptive_field": "from how far SMT's attention takes what it takes",
    "fourier_spectrum": "what frequencies the maps hold, along depth",
    "feature_map_variance": "how much features differ from place to place, along depth",
    "response_maps": "GroupMixFormer: what each group of tokens answers",
    "modulation_maps": "SMT: before and after scale-aware aggregation",
    "contexts": "CoTNet: static and dynamic context, weights between neighbours",
    "gate_maps": "DAS: gates, offsets and sampling points",
}

_DESCRIPTION = f"""Show what a model looks at: a page with methods, layers and models side by side.

Methods:
{"".join(f"    {name:<26} {what}{chr(10)}" for name, what in METHODS.items())}
Examples:
    convattn explain runs/pictures cat.jpg dog.jpg
    convattn explain runs/pictures photos --method grad_cam,occlusion --layer 8,16 --target cat
    convattn explain runs/plain photos --compare runs/gated --layer 16,32 --output gates.html
    convattn explain smt_tiny photos --method effective_receptive_field --size 256 --images 4
    convattn explain runs/gated photos --method sfd_score --masks masks --json
    convattn explain cotnet_50 cat.jpg --method all --random-weights --output pictures
"""
_MODEL = (
    "A run folder, a model file (.safetensors), or the name of a model with published weights (`timm:NAME` for timm's)."
)
_PICTURES = f"Image files ({IMAGES}), folders of them, patterns, or lists of files."


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help=_MODEL)]
    pictures: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...", help=_PICTURES)]
    method: str = "grad_cam"
    """What to show, with commas between them; `all` for all that the model has the tensors for."""
    compare: tuple[str, ...] = ()
    """More models beside it."""
    layer: str | None = None
    """Where to look, with commas: strides such as 16, or names of modules. By default what is usual for each method."""
    target: str | None = None
    """The class to explain, by name or number; the predicted one of each image by default."""
    box: tuple[float, float, float, float] | None = None
    """Of a detector: the object whose box is nearest to x0 y0 x1 y1, in pixels of the image as the model sees it, is
    explained; by default the surest one."""
    size: SizeOption = None
    """Of the images: a side, or height and width. By default what the model takes, 1024 for the effective receptive
    field; smaller ones take less time, and the page says so."""
    images: int | None = None
    """Look at so many images at most: 8 for pictures, 50 for figures, 100 for scores by default."""
    masks: Path | None = None
    """For the sfd score: a folder with a mask of each image's name, or a file of COCO's annotations."""
    mask_classes: str | None = None
    """The objects in these masks that count, with commas: numbers, or COCO's categories. By default all."""
    salient: float = 0.5
    """For the sfd score: heat from which a place outside the object counts."""
    normalise: Literal["furthest", "sequence", "uniform"] = "furthest"
    """Form of the relative receptive field: over the furthest position, the same in row order, or over uniform
    attention."""
    position: tuple[int, int] | None = None
    """x and y, in pixels of the image as the model sees it, of the place whose local weights and sampling points are
    shown; by default the middle."""
    random_weights: bool = False
    """Take named models without their published weights: for what depends on the architecture alone."""
    output: Path = Path("explained.html")
    """A page (.html), or a folder: each picture by itself, and explanation.json with what was said."""
    json: bool = False
    """Print one JSON object."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="explain", description=_DESCRIPTION)
    if not options.pictures:
        raise UsageError("no image given; write convattn explain MODEL IMAGE...")
    methods = methods_of(options)
    if "sfd_score" in methods and options.masks is None and options.method != "all":
        raise UsageError("sfd_score needs --masks, a folder of masks or COCO's annotations")
    check_at_least(1, options, "images")
    if not 0 < options.salient <= 1:
        raise UsageError(f"--salient {options.salient} must be above 0 and at most 1")
    is_page = options.output.suffix == ".html"
    if options.output.is_dir() if is_page else options.output.suffix or options.output.is_file():
        raise UsageError(f"--output {options.output} is neither a page (.html) nor a folder")
    check_writable(options.output.parent if is_page else options.output)
    return options


def methods_of(options: Options) -> list[str]:
    """The methods that are named, in order; all of them for `all`."""
    words = [word.replace("-", "_") for word in words_of(options.method)]
    if words == ["all"]:
        return [*METHODS]
    for word in words:
        if word not in METHODS:
            raise UsageError(f"--method {word!r} is unknown; {nearest(word, METHODS)}")
    if not words:
        raise UsageError(f"--method {options.method!r} names nothing; give one or more, with commas between them")
    return list(dict.fromkeys(words))
