"""The tensors of a published head: what must be there, in which shapes, and which tokens its output layer scores."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from specdec_lib.models.loading.weights import PICKLED, check_weight_files
from specdec_lib.models.published.config import PublishedConfig
from specdec_lib.models.published.head import TOKEN_ROWS, PublishedHead

RENAMED = {  # by the names of older layouts, and of layers in the target's own checkpoint
    "midlayer.": "layers.0.",
    "mtp_layers.": "layers.",
    "mtp.layers.": "layers.",
    "mtp.fc.": "layers.0.input_proj.",
    "mtp.norm.": "layers.0.final_layernorm.",
    "mtp.pre_fc_norm_embedding.": "layers.0.token_layernorm.",
    "mtp.pre_fc_norm_hidden.": "layers.0.hidden_layernorm.",
}
OWN = "mtp."  # begins the names of such layers
UNUSED = ("verifier_lm_head.", "verifier_norm.", "rotary_emb.", "t2d")  # of training
MAPPING = "d2t"  # target id = draft id + d2t[draft id]


def read_shapes(folder: Path, kept: str = "") -> dict[str, torch.Size]:
    """The shape of each tensor in a head's folder, by today's names; ValueError for a damaged file.

    Args:
        kept: how names begin; all others are those of another model in the same files.
    """
    if pickled := _pickled(folder):
        found = {name: tensor.shape for name, tensor in pickled.items()}
    else:
        found = {name: torch.Size(shape) for name, shape in check_weight_files(folder).items()}
    return {_name(name): shape for name, shape in found.items() if _is_used(name, kept)}


def read_tensors(folder: Path, kept: str = "") -> dict[str, torch.Tensor]:
    """The tensors themselves."""
    found = _pickled(folder)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in tensors.keys() if _is_used(name, kept)]  # noqa: SIM118
            found |= {name: tensors.get_tensor(name) for name in names}
    return {_name(name): tensor for name, tensor in found.items() if _is_used(name, kept)}


def _is_used(name: str, kept: str) -> bool:
    return name.startswith(kept) and not name.startswith(UNUSED)


def read_mapping(folder: Path) -> torch.Tensor | None:  # [scored]
    """What is to be added to each token id of the output layer; None if it scores the whole vocabulary."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            if MAPPING in tensors.keys():  # noqa: SIM118
                return tensors.get_tensor(MAPPING)
    return _pickled(folder).get(MAPPING)


def _pickled(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `pytorch_model.bin`, by PyTorch's restricted unpickler, which runs no code; else none."""
    path = folder / PICKLED
    if not path.is_file() or [*folder.glob("*.safetensors")]:
        return {}
    try:
        found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path} is damaged or truncated ({reason}): delete it and fetch it again") from None
    return found


def _name(name: str) -> str:
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def check_tensors(config: PublishedConfig, head: PublishedHead, shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a checkpoint whose tensors are not those of `head`, by a ValueError that names them."""
    layers = config.layers
    needed = {name: tensor.shape for name, tensor in head.state_dict().items()}
    rows = {
        TOKEN_ROWS[0]: torch.Size([config.target_vocab_size, layers.hidden_size]),
        TOKEN_ROWS[1]: torch.Size([config.num_scored, layers.hidden_size]),
    }
    if layers.hidden_size != config.target_hidden_size:
        needed |= rows  # the target's would be of another width
    if config.num_scored != config.target_vocab_size:
        needed[MAPPING] = torch.Size([config.num_scored])
    known = needed | rows | {MAPPING: torch.Size([config.num_scored])}
    problems = {
        "lacks": sorted(needed.keys() - shapes.keys()),
        "has more than its layout:": sorted(shapes.keys() - known.keys()),
        "has in another shape": [
            f"{name} ({[*shapes[name]]} instead of {[*known[name]]})"
            for name in sorted(shapes.keys() & known.keys())
            if shapes[name] != known[name]
        ],
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{config.where} {problem} {', '.join(names[:3])}{more}: its files do not fit its config.json; fetch "
                "it again, or use a head of this layout"
            )


def scored_ids(config: PublishedConfig, folder: Path) -> torch.Tensor:  # [scored]
    """The target's id of each token of the output layer; ValueError unless each is another one of the vocabulary."""
    ids, mapping = torch.arange(config.num_scored), read_mapping(folder)
    if mapping is not None:
        ids = ids + mapping.long()
    if ids.unique().numel() != len(ids) or not 0 <= int(ids.min()) <= int(ids.max()) < config.target_vocab_size:
        raise ValueError(
            f"{config.where}: its {MAPPING} names a token twice, or one outside the target's vocabulary of "
            f"{config.target_vocab_size}: use the head with its own target"
        )
    return ids
