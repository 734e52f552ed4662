"""The folder of a run: fresh for a new one, and the same run's where one goes on."""

from dataclasses import asdict
from pathlib import Path

from convattn.atomic import check_writable, unfinished, write_atomically
from convattn.config_errors import ConfigError, RunFolderError
from convattn.data.held_out import share_of
from convattn.shown import is_utf8, shown
from convattn.task import Dataset
from convattn.training.config import RunConfig
from convattn.training.config_json import config_from_json, config_to_json, flat
from convattn.training.lock import LOCK_NAME
from convattn.training.places import data_places, field_of, is_relative, places, with_absolute_paths
from convattn.training.trackers import check_trackers

__all__ = [
    "check_held_out",
    "check_output",
    "check_place",
    "holds_run",
    "store_config",
    "store_held_out",
    "stored_config",
]

_CONFIG = "config.json"
_HELD_OUT = "validation.txt"

# What may change when a run goes on, and what then no longer holds.
_CHANGEABLE = {
    "data.source": "it must be the same images in another place",
    "data.validation": "it must be the same images in another place",
    "data.batch_size": "the order of the images stays, their number in an update changes",
    "data.workers": "",
    "loop.accumulation": "the order of the images stays, their number in an update changes",
    "loop.precision": "weights and optimiser are float32 in every precision; results differ by rounding",
    "loop.device": "results differ by rounding",
    "loop.compile": "results differ by rounding",
    "loop.channels_last": "results differ by rounding",
    "loop.max_skipped": "",
    "model.grad_checkpointing": "",
    "output.folder": "",
    "output.keep_checkpoints": "",
    "output.checkpoint_updates": "",
    "output.tensorboard": "",
    "output.trackers": "",
}


def check_output(config: RunConfig, *, resume: bool) -> list[str]:
    """Whether the output folder of `config` can be written to, and its trackers be had, before any work.

    Args:
        config: the whole run.
        resume: the folder holds this very run; otherwise it is empty or does not exist.

    Returns:
        A line for each thing that is new in a run that goes on.

    Raises:
        ConfigError: if it is not so, or something differs that a run cannot change underway.
        OSError: if the folder cannot be written.
    """
    folder = Path(config.output.folder)
    if not is_utf8(folder.absolute()):
        raise ConfigError(
            f"{shown(folder)}: model files and TensorBoard's are read only where names are UTF-8; "
            "choose another --output"
        )
    check_writable(folder)
    check_trackers(config.output.trackers)
    if resume:
        notes = _changes(config, stored_config(folder), folder)
        for name in data_places(config):
            check_place(name, field_of(config, name), f"--{name.replace('_', '-')}")
        return notes
    if folder.is_dir() and set(folder.iterdir()) - {*unfinished(folder), folder / LOCK_NAME}:
        raise ConfigError(
            f"{folder}: the output folder is not empty; go on with --resume {folder}, or choose another --output"
        )
    return []


def store_config(config: RunConfig) -> None:
    """Write the configuration into its output folder; raises OSError if that cannot be written."""
    write_atomically(Path(config.output.folder) / _CONFIG, config_to_json(config).encode())


def check_held_out(folder: Path, config: RunConfig, validation: Dataset) -> None:
    """Raise RunFolderError if a run would hold out other images than its folder lists, since files came or went."""
    listed = folder / _HELD_OUT
    if share_of(config.data.validation) is None or not listed.is_file():
        return
    before = set(listed.read_text("utf-8", "surrogateescape").splitlines())
    now = set(_names(config, validation))
    if before != now:
        raise RunFolderError(
            f"{config.data.source}: the images have changed: {len(before - now)} of the {len(before)} that the run "
            f"holds out ({listed}) would be trained on; restore them, or begin a new run"
        )


def store_held_out(config: RunConfig, validation: Dataset) -> None:
    """List the images that a run holds out in its folder; raises OSError if that cannot be written."""
    if share_of(config.data.validation) is not None:
        text = "".join(f"{name}\n" for name in _names(config, validation))
        write_atomically(Path(config.output.folder) / _HELD_OUT, text.encode("utf-8", "surrogateescape"))


def _names(config: RunConfig, validation: Dataset) -> list[str]:
    """Where the images lie below the run's, which may be moved."""
    start = f"{config.data.source.rstrip('/')}/"
    return [path.removeprefix(start).replace("\n", " ") for path in validation.paths]


def holds_run(folder: Path) -> bool:
    """Whether a run was started in `folder`."""
    return (folder / _CONFIG).is_file()


def stored_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`; RunFolderError if there is none, or it cannot be read."""
    if not holds_run(folder):
        raise RunFolderError(f"{folder}: no run to resume here; it holds no {_CONFIG}")
    try:
        return config_from_json((folder / _CONFIG).read_text())
    except ValueError as error:  # of the text, or of its encoding
        raise RunFolderError(f"{folder / _CONFIG}: {shown(error)}; the checkpoints have whole copies of it") from None


def check_place(name: str, value: str | None, option: str) -> None:
    """Raise RunFolderError if what the field `name` of a stored configuration names is gone.

    `option` is that of the command line which takes its new place.
    """
    if value is not None and Path(value).is_absolute() and "{" not in value and not Path(value).exists():
        raise RunFolderError(
            f"{value}: no such folder or file any more, the run's {name}; give its new place: {option} …"
        )


def _changes(config: RunConfig, stored: RunConfig, folder: Path) -> list[str]:
    notes = [
        f"{name} {value!r}, stored without its folder, is taken from here: {field_of(config, name)}"
        for name in places(stored)
        if name != "output.folder"
        and (value := field_of(stored, name)) is not None
        and is_relative(stored, name, value)
    ]
    changeable = _CHANGEABLE | {f"task.{name}": "it must be the same in another place" for name in stored.task.places}
    now = flat(asdict(config))
    for name, value in flat(asdict(with_absolute_paths(stored))).items():
        given = now.get(name)
        if given == value:
            continue
        consequence = changeable.get(name)
        if consequence is None:
            raise ConfigError(
                f"{folder}: was started with {name} {value!r}, not {given!r}; resume as it was, or change "
                f"only {', '.join(field for field, effect in changeable.items() if effect)}"
            )
        if consequence:
            notes.append(f"{name} is now {given!r}, was {value!r}: {consequence}")
    return notes
