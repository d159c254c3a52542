"""The C++ kernels for CPUs: compiled at first use, kept in the cache folder, loaded as `torch.ops.specdec_lib`.

They are made for AVX-512 BF16 and VNNI where the processor has those, else for AVX2. A machine without either, or
without a C++ compiler, runs plain PyTorch instead, several times slower.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

from specdec_lib.config import cache_folder

SOURCES = sorted(Path(__file__).resolve().parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).resolve().parent.glob("*.h"))
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fopenmp", "-w"]
FOR = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mavx512vnni", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}

logger = logging.getLogger(__name__)


def why_no_kernels() -> str | None:
    """Load the kernels, compiling them if this is the first time (some ten seconds); the reason if they cannot be."""
    return load()[1]


def kernel_facts() -> dict[str, object]:
    """Which kernels this process computes with, or why with none."""
    library, reason = load()
    return {"kernels": library.stem if library else f"none: {reason}"}


def instructions() -> str | None:
    """What the kernels are compiled for here, None if for nothing that this processor has.

    It is at most what PyTorch itself uses, which the environment variable ATEN_CPU_CAPABILITY limits.
    """
    used = torch.backends.cpu.get_cpu_capability()
    if used == "AVX512" and torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported():
        return "avx512"
    return "avx2" if used in ("AVX2", "AVX512") else None


@functools.cache
def load() -> tuple[Path, None] | tuple[None, str]:
    """The library that this process computes with, or the reason for none. A process tries once."""
    kind = instructions()
    if kind is None:
        return None, "this processor has no AVX2, or PyTorch may not use it"
    try:
        library = compiled_library(kind)
        torch.ops.load_library(library)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        reason = f"the CPU kernels do not compile or load: {message.strip().splitlines()[0]}"
        logger.warning("%s; plain PyTorch is used instead, several times slower", reason)
        return None, reason
    return library, None


def compiled_library(kind: str) -> Path:
    """The library made of this very code with this very PyTorch for `kind`; compiled if the cache does not hold it."""
    compiler = shlex.split(cpp_extension.get_cxx_compiler()) or ["c++"]  # may be several words: ccache g++
    flags = FLAGS + FOR[kind]
    code = "".join(path.read_text(encoding="utf-8") for path in [*HEADERS, *SOURCES])
    determined_by = f"{code} {shlex.join(compiler)} {flags} {torch.__version__}"
    folder = cache_folder() / "kernels"
    library = folder / f"kernels-{kind}-{hashlib.sha256(determined_by.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        logger.warning("compiling the CPU kernels, once")  # a warning is seen without any logging set-up
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cannot write to {folder} ({error.strerror}): set SPECDEC_CACHE to a folder you own"
            ) from error
        places = [f"-I{path}" for path in cpp_extension.include_paths()]
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-lc10"]
        run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as work, ThreadPoolExecutor() as pool:
            made = Path(work) / library.name
            objects = {str(path): str(Path(work) / f"{path.stem}.o") for path in SOURCES}
            each = [[*compiler, *flags, "-c", path, "-o", name, *places] for path, name in objects.items()]
            list(pool.map(run, each))
            run([*compiler, "-shared", "-fopenmp", *objects.values(), "-o", str(made), *libraries])
            made.rename(library)  # whole or not at all, however many processes compile at once
    return library
