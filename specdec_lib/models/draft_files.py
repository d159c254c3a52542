"""The files of a draft in a folder: weights in bfloat16, and a config with kind, settings and SHA-256."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.weights import sha256

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def read_config(folder: Path, kind: str) -> dict:
    """The settings of the draft in `folder`; ValueError if there is none of this `kind`."""
    path = Path(folder) / CONFIG
    if not path.exists():
        raise ValueError(f"{path} is missing; give the folder of a draft, or write one with `make draft`")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("kind") != kind:
        raise ValueError(f"{path} describes a {config.get('kind')!r}, not a {kind!r}; load it as what it is")
    return config["settings"]


def check_target(folder: Path, target: LanguageModel, hidden_size: int, vocab_size: int) -> None:
    """Refuse a draft that was made for another target; ValueError names the sizes."""
    if (hidden_size, vocab_size) != (target.hidden_size, target.vocab_size):
        raise ValueError(
            f"{folder}: made for a target of width {hidden_size} and {vocab_size} tokens, but {target.name} has "
            f"{target.hidden_size} and {target.vocab_size}; use the draft with its own target"
        )


def save_draft(module: nn.Module, folder: Path, kind: str, settings: dict) -> None:
    """Write what `read_config` and `load_weights` read."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous() for name, t in module.state_dict().items()}
    save_file({n: t.bfloat16() if t.is_floating_point() else t.int() for n, t in tensors.items()}, folder / WEIGHTS)
    text = json.dumps({"kind": kind, "sha256": sha256(folder / WEIGHTS), "settings": settings}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill `module` from the weights in `folder`; ValueError if they are missing, changed or of another shape."""
    path = Path(folder) / WEIGHTS
    if not path.exists():
        raise ValueError(f"{path} is missing; check the repository out in full, or write it with `make draft`")
    if sha256(path) != json.loads((path.parent / CONFIG).read_text(encoding="utf-8")).get("sha256"):
        raise ValueError(f"{path} is not the file that {CONFIG} next to it describes; check both out again")
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} does not fit its settings ({reason}); check it out again") from error
