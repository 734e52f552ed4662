"""What a recipe is: a named, documented function without arguments that returns the whole configuration of a run."""

from collections.abc import Callable
from dataclasses import replace

from convattn.training.config import OutputConfig, RunConfig
from convattn.weights.records import OFFICIAL_WEIGHTS, OfficialWeights

__all__ = ["BUFFERS", "NOT_RUN", "Recipe", "published", "recipe", "record_of", "several_gpus"]

Recipe = Callable[[], RunConfig]

NOT_RUN = "Not run here."

BEST = (
    "`best.safetensors` is the best epoch on the images that it is then evaluated on, so its figure flatters a little; "
    "`last.safetensors` is chosen by nothing."
)
BUFFERS = (
    "With several processes the running statistics of batch norm are those of the first: DDP sends its buffers to the "
    "others before each step."
)


def recipe(
    name: str, summary: str, config: RunConfig, *, result: str, hardware: str, source: str, notes: str = ""
) -> Recipe:
    """A recipe made from a row of a table.

    Args:
        name: what `convattn train` calls it; also the name of its output folder.
        summary: its first line in `convattn train --list`.
        config: the run; its output folder is filled in.
        result: what it reaches, and who says so.
        hardware: what it needs.
        source: where its settings are from.
        notes: what else to know, such as what was left open and what was chosen.
    """
    lines = [
        summary,
        "",
        f"Command: `convattn train {name} --data {config.data.source} --output runs/{name}`",
        f"Hardware: {hardware}",
        f"Source: {source}",
        f"Result: {result}",
        BEST,
        *([notes] if notes else []),
    ]

    def build() -> RunConfig:
        return replace(config, output=OutputConfig(f"runs/{name}"))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = "\n".join(lines)
    return build


def published(weights: str) -> str:
    """The accuracy that the authors state for the weights `NAME.TAG`, and where; nothing of it was run here."""
    record = record_of(weights)
    tops = [(record.top1, "top-1"), (record.top5, "top-5")]
    figures = ", ".join(f"{value:.1f} % {name}" for value, name in tops if value is not None)
    return f"{figures} ({record.source}). {NOT_RUN}"


def record_of(weights: str) -> OfficialWeights:
    """What is known of the authors' file NAME.TAG."""
    name, _, tag = weights.partition(".")
    return next(record for record in OFFICIAL_WEIGHTS[name] if record.tag == tag)


def several_gpus(count: int, batch_size: int) -> str:
    """The words for a batch of several GPUs, which one process here works off one part after the other."""
    return (
        f"{count} GPUs with {batch_size} images each; one process adds up {count} batches instead, "
        f"so divide `--loop.accumulation` by the number of processes."
    )
