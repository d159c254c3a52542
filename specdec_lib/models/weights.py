"""Weight files: safetensors only, none of them damaged, and the SHA-256 of each compared with what is known of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

FETCHED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")  # of a hub's repository; no code, no pickles
DOUBLES = ("consolidated*", "original/*", "onnx/*")  # the same weights once more, in other forms
SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weight_files(where: str) -> None:
    """Open the safetensors files of a folder, which checks their headers and sizes; hub ids are left to the hub.

    Raises:
        ValueError: there are none, or one is truncated.
    """
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
    wanted, unwanted = list(FETCHED), list(DOUBLES)
    return Path(snapshot_download(where, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))


def weight_files(where: str, folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of each safetensors file in the `folder` that `fetch_weights` gave for `where`.

    Args:
        known: what the SHA-256 of some of them must be. Beside that, the hub's cache names each file by the SHA-256
            that the hub holds for it, and a file that is not what its name says is refused.

    Raises:
        ValueError: a file is not the one that is known, or has changed since it was fetched.
    """
    paths = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run: a large model has many files
        found = dict(zip(paths, pool.map(sha256, paths), strict=True))
    for path, value in found.items():
        stored = path.resolve()
        if SHA256.fullmatch(stored.name) and stored.name != value:
            raise ValueError(f"{path} has changed since it was fetched: delete {stored} and run again")
        if value != (known or {}).get(path.name, value):
            raise ValueError(f"{path} is not the file that this study is pinned to: delete {stored} and run again")
    name = folder.name if Path(where).is_dir() else f"{where}@{folder.name}"  # the cache's folder is the commit
    return {f"{name}/{path.name}": value for path, value in found.items()}
