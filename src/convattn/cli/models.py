"""`convattn models`: what there is, narrowed down and in order, and what one is made of."""

from pathlib import Path

from convattn.bench.runtimes import check_runtime
from convattn.cli.arguments import UsageError
from convattn.cli.model_details import show
from convattn.cli.model_list import print_list
from convattn.cli.options.models import Options, is_pattern
from convattn.model_files import is_place

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn models` with these options."""
    if is_place(options.name) and (Path(options.name).exists() or not is_pattern(options.name)):
        if options.limits != Options().limits or options.sort != "name":
            raise UsageError(f"{options.name}: is one model's; limits and --sort are for lists of models by name")
        return show(options.name, options.image_size, is_place=True, as_json=options.json)
    if not options.is_for_lists:
        return show(options.name, options.image_size, is_place=False, as_json=options.json)
    if options.runtime is not None:
        try:
            check_runtime(options.runtime)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return print_list(options)
