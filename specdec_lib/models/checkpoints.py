"""Checkpoints of Hugging Face: what is refused before any weights are read, and how one becomes a `LanguageModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from specdec_lib.models import host_memory
from specdec_lib.models.attention import our_attention
from specdec_lib.models.presets import Checkpoint
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.tensor_parallel import check_heads, loading
from specdec_lib.models.weights import check_weight_files


def check_checkpoints(
    checkpoints: Sequence[Checkpoint], tensor_parallel: int = 1
) -> transformers.PreTrainedTokenizerBase:
    """Refuse a target and a draft that cannot work, before any weights are read; returns the target's tokenizer.

    Raises:
        ValueError: missing or truncated files, an unsuitable architecture, or vocabularies that differ.
    """
    tokenizers = []
    for checkpoint in checkpoints:
        check_weight_files(checkpoint.where)
        check_architecture(from_hub(transformers.AutoConfig, checkpoint), checkpoint.where)
        tokenizers.append(from_hub(transformers.AutoTokenizer, checkpoint))
    target, draft = checkpoints
    check_same_vocabulary(tokenizers[0], tokenizers[1], target.where, draft.where)
    check_heads(from_hub(transformers.AutoConfig, target), tensor_parallel, target.where)
    return tokenizers[0]


def check_same_vocabulary(
    target: transformers.PreTrainedTokenizerBase,
    draft: transformers.PreTrainedTokenizerBase,
    target_id: str,
    draft_id: str,
) -> None:
    """Refuse a draft whose token ids are not the target's.

    Raises:
        ValueError: naming a token whose id differs.
    """
    of_target, of_draft = target.get_vocab(), draft.get_vocab()
    for token in sorted(of_target.keys() | of_draft.keys()):
        if of_target.get(token) != of_draft.get(token):
            raise ValueError(
                f"{draft_id} does not share the vocabulary of {target_id}: {token!r} is {of_target.get(token)} in the "
                f"target and {of_draft.get(token)} in the draft; choose a draft of the same model family"
            )


def check_architecture(config: Any, where: str) -> None:
    """Refuse attention that does not see the whole context, and models that are not causal LMs, by a ValueError."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if kinds:
        raise ValueError(f"{where} has {', '.join(sorted(kinds))} layers: choose a model with full attention only")
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ValueError(f"{where} attends to a sliding window: choose a model with full attention only")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{where} is an encoder-decoder model: choose a causal language model")


def load_language_model(
    where: str,
    device: str,
    dtype: str,
    name: str,
    feature_layers: tuple[int, ...] = (),
    *,
    compiled: bool = True,
    tensor_parallel: int = 1,
) -> LanguageModel:
    """The causal LM in the folder `where`, ready for ragged batches; with `tensor_parallel`, this process's part of it.

    Raises:
        ValueError: missing or truncated weights, or an architecture that the ragged cache cannot serve.
    """
    model = from_hub(
        transformers.AutoModelForCausalLM,
        Checkpoint(where),
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        attn_implementation=our_attention(),
        **loading(tensor_parallel, device),
    )
    if tensor_parallel == 1:
        host_memory.move(model)
    language_model = LanguageModel(model, name, feature_layers, compiled=compiled and tensor_parallel == 1)
    language_model.check_faithful()
    return language_model


def from_hub(auto_class: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    """Load a checkpoint with an auto class of transformers; code from a hub is never run."""
    where, revision = checkpoint
    load = partial(auto_class.from_pretrained, where, revision=revision, trust_remote_code=False, **options)
    return or_refuse(where, load)


def or_refuse(where: str, load: Callable[[], Any]) -> Any:
    """What `load` returns; every failure of a hub or a file becomes a ValueError of one line."""
    try:
        return load()
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "check the path or hub id and that its safetensors files are complete; delete and fetch them again"
        raise ValueError(f"cannot load {where}: {reason} - {remedy}") from error
