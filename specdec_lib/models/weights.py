"""Weight files: safetensors only, not damaged, and the SHA-256 of each compared with the known one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

FETCHED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")  # of a hub's repository; no code, no pickles
DUPLICATES = ("consolidated*", "original/*", "onnx/*")  # the same weights in other forms
SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weight_files(where: str) -> None:
    """Refuse a folder without safetensors files, or with a truncated one, by a ValueError. Hub ids are not checked."""
    if not Path(where).is_dir():
        return
    files = sorted(Path(where).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{where} holds no safetensors file: save the model with save_pretrained, or fetch it again")
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or truncated ({error}): delete it and fetch it again") from None


def fetch_weights(where: str, revision: str | None) -> Path:
    """The folder of a model: `where` itself, or its copy in the hub's cache, fetched if it is not there yet.

    Raises:
        OSError: the hub does not have it, or cannot be reached.
    """
    if Path(where).is_dir():
        return Path(where)
    wanted, unwanted = list(FETCHED), list(DUPLICATES)
    return Path(snapshot_download(where, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))


def weight_files(where: str, folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of each safetensors file in the `folder` that `fetch_weights` gave for `where`.

    Args:
        known: the SHA-256 that some of them must have. The hub's cache also names each file by its SHA-256 on the hub.

    Raises:
        ValueError: a file does not have the known SHA-256, or has changed since it was fetched.
    """
    paths = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:  # a large model has many files
        found = dict(zip(paths, pool.map(sha256, paths), strict=True))
    for path, value in found.items():
        stored = path.resolve()
        if SHA256.fullmatch(stored.name) and stored.name != value:
            raise ValueError(f"{path} has changed since it was fetched: delete {stored} and run again")
        if value != (known or {}).get(path.name, value):
            raise ValueError(f"{path} is not the file that this study is pinned to: delete {stored} and run again")
    name = folder.name if Path(where).is_dir() else f"{where}@{folder.name}"  # named by the commit
    return {f"{name}/{path.name}": value for path, value in found.items()}
