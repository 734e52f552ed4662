"""`convattn models`: what there is, narrowed down and in order, and what one is made of."""

from pathlib import Path

from convattn.bench.runtimes import check_runtime
from convattn.cli.arguments import UsageError
from convattn.cli.model_details import show
from convattn.cli.model_list import print_list
from convattn.cli.options.models import Options, is_pattern
from convattn.deploy.load import exported_suffixes
from convattn.model_configuration import is_configuration

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn models` with these options."""
    if _is_place(options.name):
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


def _is_place(name: str) -> bool:
    """Whether a folder or file is meant, there or not; as `open_model` tells them from names."""
    path = Path(name)
    if is_configuration(name):
        return False
    if path.exists():
        return True
    is_file = "/" in name or path.suffix in (".safetensors", *exported_suffixes())
    return is_file and not name.startswith("timm:") and not is_pattern(name)
