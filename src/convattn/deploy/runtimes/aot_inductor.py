"""AOTInductor: the model compiled to a shared library with its weights, in a `.pt2` package, run by PyTorch.

Writing takes a C++ compiler and a minute. The library is for the processor that it was compiled on, and for those that
have its vector instructions. Opening a file runs the machine code in it: open those of people you trust.

Inductor's one option here is `freezing`, so that weights are constants which oneDNN lays out once. SMT-T at 224, batch
1, two threads of an EPYC: 39 ms; with the batch left free 43, without `freezing` 46, fused in eager 53. Loops are cut
for as many threads as PyTorch has when the file is written: write it with as many as it is to run on.
"""

import json
import platform
import re
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic, dynamic_shapes, free_axes
from convattn.deploy.muted import muted
from convattn.deploy.runtimes import pt2_archive
from convattn.deploy.runtimes.cast import cast
from convattn.deploy.runtimes.pt2_archive import archive, contents, one_line
from convattn.deploy.runtimes.runtime import CannotRunHere, OpenedFile, Precision, Request, UnreadableFile, as_list

SUFFIX = pt2_archive.SUFFIX
LIBRARIES: tuple[str, ...] = ()
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
DYNAMIC: tuple[Dynamic, ...] = ("none", "batch", "all")

_OPTIONS = {"freezing": True}
_SHAPE = "convattn_shape"  # of the images, JSON with null for what is free; the library itself does not check it
_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")  # of x86 processors, in PyTorch's words, each with those before it

digest, read_metadata, write_metadata = pt2_archive.digest, pt2_archive.read_metadata, pt2_archive.write_metadata


def form(model: nn.Module) -> nn.Module:
    """The inference form as it is."""
    return model


def write(model: nn.Module, request: Request, path: Path) -> None:
    """Compile `model` and write the package; in bf16 its weights and arithmetic are bfloat16.

    Raises:
        CannotRunHere: if there is no C++ compiler.
        ValueError: if `path` does not end in `.pt2`, as AOTInductor wants it.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: an AOTInductor package ends in {SUFFIX}; write to {path.with_suffix(SUFFIX)}")
    _check_compiler()
    shape = list(request.images.shape)
    free = free_axes(request.dynamic)
    note = json.dumps([None if axis in free else size for axis, size in enumerate(shape)])
    with muted(), torch.no_grad():  # where gradients are on, Inductor does not freeze
        program = torch.export.export(
            cast(model, request.precision), (request.images,), dynamic_shapes=dynamic_shapes(request.dynamic)
        )
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={**_OPTIONS, "aot_inductor.metadata": {_SHAPE: note}}
        )


def open_file(path: Path) -> OpenedFile:
    """The library as a function, on as many threads as PyTorch uses.

    Raises:
        UnreadableFile: if the file is missing, damaged, or an exported program.
        CannotRunHere: if it was compiled for another system or for vector instructions that this processor lacks.
    """
    noted = _noted(path)
    _check_machine(path, noted)
    try:
        model = torch._inductor.aoti_load_package(str(path))
    except Exception as error:  # whatever the loader makes of it
        raise UnreadableFile(
            f"{path}: PyTorch {torch.__version__} cannot load its library ({one_line(error)}); export it again"
        ) from None
    expected = _shape(path, noted)

    def run(images: Tensor) -> list[Tensor]:
        if expected is not None:  # the library reads past the end of a smaller input
            fits = [size in (None, given) for size, given in zip(expected, images.shape, strict=False)]
            if len(images.shape) != len(expected) or not all(fits):
                takes = ", ".join("any" if size is None else str(size) for size in expected)
                raise ValueError(f"{path}: takes images of shape ({takes}), not {tuple(images.shape)}")
        with torch.no_grad():  # what is behind the file may learn
            return as_list(model(images.contiguous()))

    return run


def operators(path: Path) -> dict[str, int]:
    """What the compiled program calls: PyTorch's operators, and kernels of its own by what is fused in them."""
    with archive(path) as package:
        sources = [package.read(name).decode() for name in package.namelist() if name.endswith("wrapper.cpp")]
    if not sources:
        raise UnreadableFile(f"{path}: holds no compiled program")
    calls = re.compile(r"ERROR_CODE_CHECK\(aoti_torch_cpu_(\w+)\(|^ +(cpp_\w+)_\d+\(", re.MULTILINE)
    found = Counter(operator or kernel for source in sources for operator, kernel in calls.findall(source))
    return dict(sorted(found.items()))


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise CannotRunHere(
            "AOTInductor compiles C++ and there is no compiler; install g++ or clang++, or name one in CXX"
        ) from None


def _noted(path: Path) -> dict[str, str]:
    """What AOTInductor notes beside a library: of the machine, and what we added."""
    if contents(path) != "aot_inductor":
        raise UnreadableFile(f"{path}: is an exported program, not an AOTInductor package")
    with archive(path) as package:
        notes = [package.read(name) for name in package.namelist() if name.endswith("wrapper_metadata.json")]
    try:
        return dict(json.loads(notes[0]))
    except (IndexError, ValueError, TypeError, RecursionError):
        raise UnreadableFile(f"{path}: the package does not say what machine it is for; export it again") from None


def _shape(path: Path, noted: dict[str, str]) -> list[int | None] | None:
    """The shape that the library takes, None for a side that is free; None if it does not say."""
    if _SHAPE not in noted:
        return None
    try:
        shape = json.loads(noted[_SHAPE])
        if not all(size is None or type(size) is int for size in shape):
            raise TypeError
    except (ValueError, TypeError, RecursionError):
        raise UnreadableFile(f"{path}: what it says of its input is damaged; export it again") from None
    return shape


def _check_machine(path: Path, noted: dict[str, str]) -> None:
    compiled_on = noted.get("AOTI_PLATFORM"), noted.get("AOTI_MACHINE")
    here = sys.platform, platform.machine()
    if compiled_on != here:
        raise CannotRunHere(f"{path}: compiled for {compiled_on}, and this is {here}; export it here")
    needed = noted.get("AOTI_CPU_ISA", "").split(" ")[0]
    capability = torch.backends.cpu.get_cpu_capability()
    if needed in _CAPABILITIES and capability in _CAPABILITIES[: _CAPABILITIES.index(needed)]:
        raise CannotRunHere(f"{path}: compiled for {needed}, which this processor lacks; export it here")
