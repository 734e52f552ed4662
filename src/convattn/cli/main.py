"""`convattn COMMAND …`: finds the command, and turns errors into one line and an exit status."""

import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from convattn.cli.arguments import UsageError
from convattn.cli.console import OutputError, standard_streams, warn
from convattn.config_errors import ConfigError, RunFolderError
from convattn.nearest import UnknownName, nearest
from convattn.version import __version__

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    # name -> what it does; a module of this package has `command(options) -> exit status`, one of `options` reads them
    "demo": "train, explain, export and measure a small model on handwritten digits; writes a report",
    "models": "list models, or show one: stages, parameters, multiply-adds, published accuracy",
    "train": "train a model on a folder of images, or resume a run",
    "eval": "how good a model is on images of which the truth is known",
    "runs": "compare training runs: accuracy, loss, speed, and the settings in which they differ",
    "predict": "what a model says of images: classes, masks, objects",
    "ablate": "compare designs fairly: one recipe, paired seeds, controls, intervals; the papers' tables by name",
    "search": "compose a network of any mixers within a measured latency, held against others by runs of its own",
    "explain": "show what models look at, side by side: Grad-CAM, receptive fields, spectra, inner maps",
    "data": "look through a data set before training: broken, double, leaked and odd images",
    "export": "write a model for another runtime, such as ONNX or OpenVINO, with proof that the numbers survived",
    "bench": "time models side by side: latency, memory, time per multiply-add over a reference",
    "convert": "read the authors' checkpoint and write it under this package's names",
}

_MANY_WORKERS = re.compile(r"This DataLoader will create (\d+) worker processes .*suggested max .* is (\d+)\b")

USAGE = f"""usage: convattn COMMAND [ARGUMENTS] [--debug]

Vision backbones in which convolution and attention work together.

commands:
{"".join(f"  {name:<9} {purpose}{os.linesep}" for name, purpose in COMMANDS.items())}
convattn COMMAND --help shows the arguments and examples of one.
--debug shows where an error came from.  --version prints the version.

examples:
  convattn demo
  convattn models "smt_*"
  convattn train --data photos --output runs/photos
"""


def main(args: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with standard_streams(), _warnings_in_one_line():
            return _run(words, debug)
    except OutputError as error:
        if error.is_reader_gone:  # it has seen enough
            return 0
        warn(f"convattn{' ' if words else ''}{' '.join(words[:1])}: {error}")
        return 1


def _run(words: list[str], debug: bool) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        _tell(f"convattn: unknown command {name!r}; {nearest(name, COMMANDS)}")
        return 2
    if not _has_folder():
        _tell(f"convattn {name}: the folder in which it was started is gone; change to another")
        return 1
    try:
        options = importlib.import_module(f"convattn.cli.options.{name}").read(rest)  # no torch for a wrong word
        return importlib.import_module(f"convattn.cli.{name}").command(options)
    except OutputError:
        raise
    except KeyboardInterrupt as error:
        return _fail(name, error, debug, status=130, message=str(error) or "interrupted")
    except RunFolderError as error:
        return _fail(name, error, debug, status=1, message=str(error))
    except (UsageError, UnknownName, ConfigError) as error:
        return _fail(name, error, debug, status=2, message=str(error))
    except Exception as error:  # whatever timm, torch or a runtime raise; --debug shows where
        return _fail(name, error, debug, status=1, message=_one_line(error))


def _has_folder() -> bool:
    """Whether the working folder is there: without it Intel's MKL ends the process at the first product."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show warnings to a person who runs a command: what they say, not where in the code they arose."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: warn(f"warning: {_in_few_words(message)}")
        yield


def _in_few_words(message: Warning | str) -> str:
    """A warning on one line; PyTorch's long one about workers in our words."""
    text = " ".join(str(message).split())
    if workers := _MANY_WORKERS.match(text):
        return f"{workers[1]} workers for {workers[2]} processor cores make loading slower; {workers[2]} are enough"
    return text


def _fail(name: str, error: BaseException, debug: bool, *, status: int, message: str) -> int:
    if debug:
        traceback.print_exception(error)
    _tell(f"convattn {name}: {message}")
    return status


def _tell(line: str) -> None:
    """Say what went wrong: once, where torchrun has started several processes that all come here."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        warn(line)
        return
    from convattn.training.failure import telling  # torch, for which nobody else waits

    with telling() as first:
        if first:
            warn(line)


def _one_line(error: BaseException) -> str:
    """The message of an error on one line; for an operating-system error the file and the reason."""
    if isinstance(error, OSError) and error.strerror:  # without its number
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error)
    if not type(error).__module__.startswith("convattn."):  # ours take one line but for the names in them
        text = " ".join(text.split())
    if isinstance(error, LookupError | AttributeError | TypeError) or not text:  # their texts alone say little
        return f"{type(error).__name__}: {text}".rstrip(": ")
    return text
