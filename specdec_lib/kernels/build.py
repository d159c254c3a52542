"""The C++ kernels for CPUs: compiled at first use, kept in the cache folder, loaded as `torch.ops.specdec_lib`.

A machine without a C++ compiler or without AVX-512 BF16 and VNNI runs plain PyTorch instead, several times slower.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from torch.utils import cpp_extension

from specdec_lib.config import cache_folder

SOURCES = sorted(Path(__file__).resolve().parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).resolve().parent.glob("*.h"))
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-w"]
FLAGS += ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mavx512vnni", "-mfma"]

logger = logging.getLogger(__name__)


def why_no_kernels() -> str | None:
    """Load the kernels, compiling them if this is the first time (some ten seconds); the reason if they cannot be."""
    return load()[1]


def kernel_facts() -> dict[str, object]:
    """Which kernels this process computes with, or why with none, and how long compiling them took when it was done."""
    library, reason = load()
    if library is None:
        return {"kernels": f"none: {reason}", "compile_s": None}
    notes = library.with_suffix(".json")
    seconds = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {"compile_s": None}
    return {"kernels": library.stem} | seconds


@functools.cache
def load() -> tuple[Path, None] | tuple[None, str]:
    """The library that this process computes with, or the reason for none. A process tries once."""
    if not (torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()):
        return None, "this processor has no AVX-512 BF16, or no VNNI"
    try:
        library = compiled_library()
        torch.ops.load_library(library)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = f"the CPU kernels do not compile or load: {said.strip().splitlines()[0]}"
        logger.warning("%s; plain PyTorch is used instead, several times slower", reason)
        return None, reason
    return library, None


def compiled_library() -> Path:
    """The shared library made from this very code with this very PyTorch; compiled if the cache does not hold it."""
    compiler = cpp_extension.get_cxx_compiler()
    code = "".join(path.read_text(encoding="utf-8") for path in [*HEADERS, *SOURCES])
    determined_by = f"{code} {compiler} {FLAGS} {torch.__version__}"
    folder = cache_folder() / "kernels"
    library = folder / f"kernels-{hashlib.sha256(determined_by.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        logger.warning("compiling the CPU kernels, once")  # a warning is seen without any logging set-up
        folder.mkdir(parents=True, exist_ok=True)
        places = [f"-I{path}" for path in cpp_extension.include_paths()]
        places += [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-lc10"]
        with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as work:
            made, started = Path(work) / library.name, time.monotonic()
            command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made), *places]
            subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = {"compile_s": round(time.monotonic() - started, 2)}
            library.with_suffix(".json").write_text(json.dumps(seconds), encoding="utf-8")
            made.rename(library)  # whole or not at all, however many processes compile at once
    return library
