"""`convattn bench`: models side by side, in the runtimes people use."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from convattn.bench.allocator import restart_with_steady_allocator
from convattn.bench.compare import measure_settings, usual_size
from convattn.bench.growth import BATCHES, SIZES, Growth, growth_of, growth_settings
from convattn.bench.latency import Interrupted
from convattn.bench.limits import probe_limits
from convattn.bench.machine import check_threads, pytorch_threads
from convattn.bench.profile import Profile, profile
from convattn.bench.runtimes import Setting, check_runtime, pytorch_form
from convattn.bench.table import BenchmarkTable
from convattn.cli.arguments import UsageError, words_of
from convattn.cli.console import console, notes, plain, print_table, say
from convattn.cli.options.bench import Options
from convattn.deploy.staging import staging
from convattn.json_text import json_text
from convattn.model_files import open_model
from convattn.report.benchmark import growth_table, profile_tables, write_benchmark
from convattn.sizes import Size, size_of_words
from convattn.task import Table

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn bench` with these options."""
    usual = 224 if options.size or options.growth else usual_size([*options.names, *options.against])
    try:
        settings = _settings(options, usual)
    except ValueError as error:  # an unknown runtime or precision, more threads than cores
        raise UsageError(str(error)) from None
    profiled = _profiled(options, settings) if options.profile else None
    if options.html is not None:
        _check_writable(options.html)
    if _is_own_process():
        restart_with_steady_allocator()
    table, interrupted = _measure(options, settings)
    profiles: dict[str, Profile] = {}
    if profiled is not None and not interrupted:
        try:
            profiles = _profiles(options, *profiled)
        except KeyboardInterrupt:
            interrupted = True
    growths = growth_of(table) if options.growth else []
    if options.html is not None:
        write_benchmark(options.html, table, _more_tables(growths, profiles))
    if options.json:
        more = {"growth": [asdict(growth) for growth in growths], "profiles": _profiles_as_data(profiles)}
        print(json_text(table.to_dict() | more, indent=2))
    else:
        _show(table, _more_tables(growths, profiles))
    if interrupted:
        raise KeyboardInterrupt(f"interrupted; rows measured until then: {len(table.rows)}")
    return 0 if table.rows else 1


def _measure(options: Options, settings: list[Setting]) -> tuple[BenchmarkTable, bool]:
    """The table, and whether Ctrl-C cut it short."""
    display = notes()
    with display.status("starting") as status:
        try:
            table = measure_settings(
                [*options.names, *options.against],
                settings,
                runtimes=_words("runtime", options.runtime),
                threads=options.threads,
                repeats=options.repeats if options.repeats is not None else 7 if options.growth else 30,
                warmup=1 if options.growth else 3,
                reference=options.reference,
                memory=options.memory,
                progress=lambda text: status.update(plain(text)) if display.is_terminal else display.print(plain(text)),
            )
        except Interrupted as stop:
            return stop.measured, True
    return table, False


def _settings(options: Options, usual: Size) -> list[Setting]:
    """What to measure at; with growth two series instead of all combinations."""
    sizes = _sizes(options.size) if options.size is not None else list(SIZES) if options.growth else [usual]
    batches = _numbers("batch", options.batch, list(BATCHES) if options.growth else [1])
    precisions = _words("precision", options.precision)
    check_threads(options.threads)
    for runtime in _words("runtime", options.runtime):
        check_runtime(runtime)
    if options.growth:
        if max(len(set(sizes)), len(set(batches))) < 3:
            raise UsageError("growth needs three different sizes or batches; give --size or --batch more values")
        return [
            setting
            for precision in precisions
            for setting in growth_settings(sizes, batches, precision, options.device)
        ]
    return [
        Setting(precision, batch, size, options.device)
        for size in sizes
        for batch in batches
        for precision in precisions
    ]


def _words(name: str, text: str) -> list[str]:
    words = words_of(text)
    if not words:
        raise UsageError(f"{name} {text!r} names nothing; give one value, or several with commas between them")
    return words


def _numbers(name: str, text: str | None, default: list[int]) -> list[int]:
    if text is None:
        return default
    words = _words(name, text)
    try:
        return [int(word) for word in words]
    except ValueError:
        raise UsageError(f"{name} {text!r} must be whole numbers with commas between them, such as 1,8") from None


def _sizes(text: str) -> list[Size]:
    try:
        return [size_of_words([word]) for word in _words("size", text)]
    except ValueError as error:
        raise UsageError(f"--size {error}") from None


def _check_writable(path: Path) -> None:
    """Refuse at once what would fail behind minutes of measuring."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    with staging(path):
        pass


def _is_own_process() -> bool:
    """Whether this process was started for this command alone, so that it may be started again."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    return words[:1] == ["bench"] and sys.orig_argv[-len(sys.argv) + 1 :] == sys.argv[1:]


def _profiled(options: Options, settings: list[Setting]) -> tuple[str, Setting]:
    """The runtime and the setting whose operations are shown: the leanest form in eager mode, the first setting."""
    forms = [runtime for runtime in ("prepacked", "fused", "eager") if runtime in _words("runtime", options.runtime)]
    setting = settings[0]
    if not forms or setting.device != "cpu" or setting.precision not in ("fp32", "bf16"):
        raise UsageError(
            f"--profile watches eager, fused or prepacked in fp32 or bf16 on the CPU, not {options.runtime} "
            f"in {setting.precision} on {setting.device}"
        )
    return forms[0], setting


def _profiles(options: Options, runtime: str, setting: Setting) -> dict[str, Profile]:
    """The operations of each model, by a title."""
    profiles = {}
    with notes().status("profiling"), pytorch_threads(options.threads):
        limits = probe_limits(torch.float32 if setting.precision == "fp32" else torch.bfloat16)
        for name in options.names:
            model, images = pytorch_form(open_model(name, pretrained=False), runtime, setting, "channels_last")
            profiles[f"{name}, {runtime}, {setting}"] = profile(model, images, limits)
    return profiles


def _profiles_as_data(profiles: dict[str, Profile]) -> list[dict[str, Any]]:
    return [
        {
            "of": title,
            "forward_ms": found.forward_ms,
            "operations_ms": found.operations_ms,
            "limits": asdict(found.limits),
            "operations": [asdict(operation) for operation in found.operations],
        }
        for title, found in profiles.items()
    ]


def _more_tables(growths: list[Growth], profiles: dict[str, Profile]) -> list[Table]:
    tables = [growth_table(growths)] if growths else []
    return tables + [table for title, found in profiles.items() for table in profile_tables(title, found)]


def _show(table: BenchmarkTable, more: list[Table]) -> None:
    say(", ".join(f"{key} {value}" for key, value in table.environment.items()))
    for figures in [*table.tables(), *more]:
        console().print("", plain(figures.title, "bold"), sep="\n")
        if figures.note:
            say(figures.note)
        print_table(figures)
    for gap in table.not_measured:
        say(f"not measured: {gap.model}, {gap.runtime}, {gap.setting}: {gap.why}")
    for line in table.sources():
        say(line)
