"""Files of weights: safetensors only, undamaged, and the SHA-256 of each compared with the known one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import get_safetensors_metadata, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

if TYPE_CHECKING:
    from specdec_lib.models.runner import LanguageModel

SMALL = ["*.json", "*.jinja", "*.txt", "*.model"]  # of a hub's repository; no code, no pickles
PICKLED = "pytorch_model.bin"  # how older draft heads come, and nothing else
DUPLICATES = ["consolidated*", "original/*", "onnx/*"]  # the same weights in other forms
SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a draft's folder
CHECK_OUT = "check the repository out again and in full, or write the draft with `make draft`"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, expected: str | None, remedy: str) -> None:
    """Refuse a file that is missing, or whose SHA-256 is not the `expected` one, by a ValueError with the remedy."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: {remedy}")
    if expected is not None and (found := sha256(path)) != expected:
        raise ValueError(f"{path} has SHA-256 {found} instead of {expected}: {remedy}")


def check_weight_files(folder: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a folder, from the headers of its files.

    ValueError for a folder without safetensors files, with a truncated one, or with an adapter for another model.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} is an adapter: merge it into its model (merge_and_unload), save that and name it")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors file: save the model with save_pretrained, or fetch it again")
    shapes: dict[str, list[int]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as tensors:
                shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or truncated ({error}): delete it and fetch it again") from None
    return shapes


def shapes_on_hub(where: str, revision: str | None) -> dict[str, list[int]]:
    """The shape of each tensor of a hub's model, before its files are fetched; none if the hub does not answer.

    From the headers of its files: of its copy in the cache if there is one, or else the hub is asked for these alone.
    """
    with suppress(OSError, ValueError):
        return check_weight_files(_fetch(where, revision, [*SMALL, "*.safetensors"], local_files_only=True))
    try:
        files = get_safetensors_metadata(where, revision=revision).files_metadata.values()
    except Exception:  # noqa: BLE001 - of whatever library; what is fetched later is checked again
        return {}
    return {name: tensor.shape for file in files for name, tensor in file.tensors.items()}


def is_local(where: str, revision: str | None) -> bool:
    """Whether a folder on this machine is meant. A revision is of the hub: with one, a folder of that name is not."""
    return revision is None and Path(where).is_dir()


def fetch_weights(where: str, revision: str | None, *, pickled: bool = False) -> Path:
    """The folder `where` itself, or its copy in the hub's cache; OSError if the hub cannot give it.

    With `pickled`, also weights that are no safetensors files.
    """
    return _fetch(where, revision, [*SMALL, "*.safetensors", *([PICKLED] if pickled else [])])


def fetch_small_files(where: str, revision: str | None) -> Path:
    """The same, of a hub without the weights: configurations and tokenizer."""
    return _fetch(where, revision, SMALL)


def _fetch(where: str, revision: str | None, patterns: list[str], **options: Any) -> Path:
    path = Path(where)
    if is_local(where, revision):
        return path
    if path.is_absolute() or where.startswith("."):
        raise ValueError(f"{where} {f'has no revision {revision}' if path.is_dir() else 'is no folder'}")
    options |= {"allow_patterns": patterns, "ignore_patterns": DUPLICATES}
    return Path(str(snapshot_download(where, revision=revision, **options)))


def weight_files(
    where: str, folder: Path, known: Mapping[str, str] | None = None, name: str | None = None
) -> dict[str, str]:
    """SHA-256 of each file of weights in the `folder` that `fetch_weights` gave for `where`.

    Keys are `name` and file; by default the name is that of the folder, or the hub's id and commit. ValueError if a
    file does not have its `known` SHA-256, or not that by which the hub's cache names it.
    """
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob(PICKLED))
    with ThreadPoolExecutor() as pool:  # a large model has many files
        found = dict(zip(paths, pool.map(sha256, paths), strict=True))
    for path, value in found.items():
        stored = path.resolve()
        if SHA256.fullmatch(stored.name) and stored.name != value:
            raise ValueError(f"{path} has changed since it was fetched: delete {stored} and run again")
        if value != (known or {}).get(path.name, value):
            raise ValueError(f"{path} is not the file that this study is pinned to: delete {stored} and run again")
    name = name or (folder.name if folder == Path(where) else f"{where}@{folder.name}")  # named by the commit
    return {f"{name}/{path.name}": value for path, value in found.items()}


def read_draft(folder: Path, kind: str, target: LanguageModel | None = None) -> dict:
    """The settings of the draft in `folder`, whose weights are those that its config names.

    ValueError if a file is missing or changed, or the draft is not of this `kind` or was made for another target.
    """
    path = Path(folder) / CONFIG
    check_file(path, None, CHECK_OUT)
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("kind") != kind:
        raise ValueError(f"{path} describes a {config.get('kind')!r}, not a {kind!r}: load it as what it is")
    check_file(path.parent / WEIGHTS, config.get("sha256", "none"), CHECK_OUT)
    settings = config["settings"]
    if target is not None:
        sizes = settings.get("llama", settings)
        width, tokens = sizes["hidden_size"], sizes["vocab_size"]
        if (width, tokens) != (target.hidden_size, target.vocab_size):
            raise ValueError(
                f"{folder}: made for a target of width {width} and {tokens} tokens, but {target.name} has "
                f"{target.hidden_size} and {target.vocab_size}: use the draft with its own target"
            )
    return settings


def fill_draft(module: nn.Module, folder: Path) -> None:
    """Fill `module` from the weights in `folder`, which `read_draft` has checked."""
    module.load_state_dict(load_file(Path(folder) / WEIGHTS))


def save_draft(module: nn.Module, folder: Path, kind: str, settings: dict) -> None:
    """Write what `read_draft` and `fill_draft` read: weights in bfloat16, and a config with kind, hash and settings."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous() for name, t in module.state_dict().items()}
    save_file({n: t.bfloat16() if t.is_floating_point() else t.int() for n, t in tensors.items()}, folder / WEIGHTS)
    text = json.dumps({"kind": kind, "sha256": sha256(folder / WEIGHTS), "settings": settings}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
