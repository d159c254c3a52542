"""What the config.json of a published draft head says: its layout, its sizes, and the layers of the target it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from specdec_lib.models.attention import our_attention
from specdec_lib.models.loading.architectures import text_config
from specdec_lib.models.loading.checkpoints import refusing
from specdec_lib.models.loading.presets import Checkpoint
from specdec_lib.models.loading.weights import CONFIG, fetch_small_files

SPECULATORS = "speculators_model_type"  # the key of a config.json in the format of the package `speculators`
MARKS = (SPECULATORS, "draft_vocab_size", "dflash_config", "eagle_config", "medusa_num_heads")
ARCHITECTURES = {"medusa": "medusa", "dflash": "dflash", "eagle": "eagle3"}  # kinds by a word in their names
LAYERS = ("llama", "qwen3", "qwen3_5_text")  # types of decoder layers
NATIVE = "mtp"  # given as a draft: the layer for multi-token prediction in the target's own checkpoint
ANGLES = ("default", "linear", "llama3", "yarn")  # rotary embeddings whose angles do not change with the text's length
KINDS = ("eagle3", "peagle", "mtp", "dflash")
SERVED = f"served are {', '.join(KINDS)} of speculators, and EAGLE-3 and DFlash in their authors' layouts"


@dataclass(frozen=True)
class PublishedConfig:
    """What is needed to build a head, before any of its weights is read.

    Attributes:
        where: the head's folder or hub id.
        kind: as `speculators` names it.
        layers: the configuration of its decoder layers.
        feature_layers: layers of the target whose outputs it reads, in the order in which it joins them.
        num_scored: tokens of its output layer.
        target_hidden_size, target_vocab_size: of the target.
        norm_before_residual: whether what is added after the first attention is the normalised state.
        norm_before_fc, fc_norm: whether the target's states are normalised, all together or layer by layer.
        norm_output: whether the state of the next position is normalised.
        verifier: the target that it was made for, if it says so.
        mask_token_id: of P-EAGLE and DFlash, the token that drafted positions read.
        block_size: of DFlash, places of its block, the last token among them.
    """

    where: str
    kind: str
    layers: PretrainedConfig
    feature_layers: tuple[int, ...]
    num_scored: int
    target_hidden_size: int
    target_vocab_size: int
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    verifier: str | None = None
    mask_token_id: int = 0
    block_size: int = 0


def is_published_head(checkpoint: Checkpoint) -> bool:
    """Whether its config.json is that of a draft head, and not that of a language model; or it is `NATIVE`."""
    if checkpoint.where == NATIVE:
        return True
    with refusing(checkpoint.where):
        path = fetch_small_files(*checkpoint) / CONFIG
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(said, dict):
            raise ValueError(f"{CONFIG} holds no object")
    return any(mark in said for mark in MARKS) or _architecture(said) is not None


def split_head(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Take the draft off the end of a list of checkpoints if it is a published head."""
    return checkpoints.pop() if len(checkpoints) > 1 and is_published_head(checkpoints[-1]) else None


def _architecture(said: Mapping[str, Any]) -> str | None:
    """The kind of a head by the name of its architecture, such as DFlashDraftModel; None if that names none."""
    names = " ".join(map(str, said.get("architectures") or [])).lower()
    return next((kind for word, kind in ARCHITECTURES.items() if word in names), None)


def read_config(checkpoint: Checkpoint, target: Any) -> PublishedConfig:
    """What the head at `checkpoint` says, made for a target with this Hugging Face config.

    Raises:
        ValueError: an unknown layout, or a head for a target of other sizes; one line with the remedy.
    """
    where, target = checkpoint.where, text_config(target)
    if where == NATIVE:
        said: dict[str, Any] = {SPECULATORS: NATIVE, "transformer_layer_config": target.to_dict()}
    else:
        said = json.loads((fetch_small_files(*checkpoint) / CONFIG).read_text(encoding="utf-8"))
    kind = _kind(said, where)
    said = {**said, **(said.get("dflash_config") or {})}
    layers = _layers(said.get("transformer_layer_config") or said, where)
    if kind == NATIVE or (kind == "eagle3" and "transformer_layer_config" not in said):  # the number is the target's
        layers.num_hidden_layers = 1
        layers.layer_types = ["full_attention"]
    if "sliding_attention" in (getattr(layers, "layer_types", None) or []):
        raise ValueError(f"{where} has layers that see a sliding window: choose a head whose layers see the whole text")
    config = PublishedConfig(
        where=where,
        kind=kind,
        layers=layers,
        feature_layers=() if kind == NATIVE else _feature_layers(said, target.num_hidden_layers, where),
        num_scored=said.get("draft_vocab_size") or layers.vocab_size,
        target_hidden_size=target.hidden_size,
        target_vocab_size=target.vocab_size,
        norm_before_residual=said.get("norm_before_residual") or False,
        norm_before_fc=said.get("norm_before_fc") or False,
        fc_norm=said.get("fc_norm") or False,
        norm_output=said.get("norm_output") or False,
        verifier=_verifier(said),
        mask_token_id=_mask_token(said, layers.vocab_size, where) if kind in ("peagle", "dflash") else 0,
        block_size=_block_size(said, layers, where) if kind == "dflash" else 0,
    )
    _check_sizes(config, said.get("target_hidden_size") or layers.hidden_size)
    return config


def _kind(said: Mapping[str, Any], where: str) -> str:
    """The kind of a head; ValueError with its name if it is not served."""
    kind = said.get(SPECULATORS)
    if kind is None:
        marked = "medusa" if "medusa_num_heads" in said else "dflash" if "dflash_config" in said else None
        kind = marked or _architecture(said) or "eagle3"
    if kind not in KINDS:
        raise ValueError(f"{where} is a draft head of the kind {kind!r}: {SERVED}; choose one of these")
    return str(kind)


def _layers(said: Mapping[str, Any], where: str) -> PretrainedConfig:
    """The configuration of the decoder layers."""
    kind = said.get("model_type", "llama")
    if kind not in LAYERS:
        raise ValueError(
            f"{where} has decoder layers of type {kind!r}: choose a head with layers of {', '.join(LAYERS)}"
        )
    config = AutoConfig.for_model(**{**said, "model_type": kind})
    config._attn_implementation = our_attention()
    angles = (config.rope_parameters or {}).get("rope_type", "default")
    if angles not in ANGLES:
        raise ValueError(
            f"{where} has rotary embeddings of type {angles!r}: choose a head with one of {', '.join(ANGLES)}"
        )
    return config


def _feature_layers(said: Mapping[str, Any], num_layers: int, where: str) -> tuple[int, ...]:
    """The layers of the target whose outputs the head reads; a config counts their inputs, from the embedding on."""
    nested = said.get("eagle_config") or {}
    ids = said.get("eagle_aux_hidden_state_layer_ids") or nested.get("eagle_aux_hidden_state_layer_ids")
    ids = ids or said.get("aux_hidden_state_layer_ids")
    if "target_layer_ids" in said:  # z-lab counts outputs
        ids = [each + 1 for each in said["target_layer_ids"]]
    ids = [2, num_layers // 2, num_layers - 3] if ids is None else ids
    if sorted({*ids}) != ids or not 0 < ids[0] <= ids[-1] < num_layers:
        raise ValueError(
            f"{where} reads the inputs of layers {ids} of a target with {num_layers}: choose a head that reads those "
            f"of layers 1 to {num_layers - 1}, each once, in rising order"
        )
    return tuple(each - 1 for each in ids)


def _mask_token(said: Mapping[str, Any], vocab_size: int, where: str) -> int:
    token = said.get("mask_token_id")
    if not isinstance(token, int) or not 0 <= token < vocab_size:
        raise ValueError(
            f"{where}: mask_token_id is {token} in its config.json: write there the id, below {vocab_size}, of the "
            "token that the head was trained with"
        )
    return token


def _block_size(said: Mapping[str, Any], layers: PretrainedConfig, where: str) -> int:
    size = said.get("block_size")
    if not isinstance(size, int) or size < 2 or said.get("sample_from_anchor") or layers.model_type != "qwen3":
        raise ValueError(
            f"{where}: block_size is {size}, sample_from_anchor is {said.get('sample_from_anchor', False)}, layers are "
            f"{layers.model_type}: choose a DFlash head of qwen3 layers with a block of at least 2, in which the last "
            "token drafts nothing"
        )
    return size


def _verifier(said: Mapping[str, Any]) -> str | None:
    """The target that the head was made for, as its maker names it."""
    name: str | None = ((said.get("speculators_config") or {}).get("verifier") or {}).get("name_or_path")
    return name


def _check_sizes(config: PublishedConfig, hidden_size: int) -> None:
    """Refuse a head that was made for a target of another width or vocabulary."""
    found = hidden_size, config.layers.vocab_size
    needed = config.target_hidden_size, config.target_vocab_size
    if found != needed:
        raise ValueError(
            f"{config.where} was made for a target of width {found[0]} and {found[1]} tokens, but this one has "
            f"{needed[0]} and {needed[1]}: use the head with its own target{_named(config.verifier)}"
        )


def _named(verifier: str | None) -> str:
    return f", {verifier}" if verifier else ""


def other_target(config: PublishedConfig, names: Sequence[str]) -> str | None:
    """The target that the head was made for, if that is none of these `names`, by the last part of each."""
    made_for = config.verifier
    last = [name.rstrip("/").split("/")[-1].lower() for name in (made_for or "", *names)]
    return made_for if made_for and last[0] not in last[1:] else None
