"""Attention over a ragged cache, as Hugging Face models call it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

NAME = "specdec_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, m, D]
    key: torch.Tensor,  # [B, H_kv, S, D]
    value: torch.Tensor,  # [B, H_kv, S, D]
    attention_mask: torch.Tensor | None,  # [B, 1, m, S], additive
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:  # [B, m, H, D]
    """Attention that never repeats keys and values: the heads of a group become extra query rows instead.

    Raises:
        ValueError: there is no mask, as when transformers' `generate` calls the model: without one a token would see
            those behind it.
    """
    assert kwargs.get("softcap") is None, "capped attention logits are not supported"
    if attention_mask is None:
        raise ValueError(
            f"{NAME} attends by the mask of a ragged cache and got none: call the model through LanguageModel, or "
            "within own_attention if transformers is to call it"
        )
    batch, heads, m, dim = query.shape
    group = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], group * m, dim)
    mask = attention_mask.repeat(1, 1, group, 1) if group > 1 else attention_mask
    out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, m, dim).transpose(1, 2), None


def our_attention() -> str:
    """Tell transformers of `grouped_attention`; returns its name there."""
    transformers.AttentionInterface.register(NAME, grouped_attention)
    return NAME


@contextmanager
def own_attention(*models: transformers.PreTrainedModel | None) -> Iterator[None]:
    """Give these models transformers' own attention for a while, as its `generate` makes no masks for ours.

    Args:
        models: every model that transformers will call, a target's assistant too; None for one that there is not.
    """
    with ExitStack() as stack:
        for model in models:
            if model is not None:
                stack.callback(model.set_attn_implementation, model.config._attn_implementation)
                model.set_attn_implementation("sdpa")
        yield


@contextmanager
def as_transformers_does(
    target: transformers.PreTrainedModel, assistant_model: transformers.PreTrainedModel | None = None
) -> Iterator[None]:
    """For a call of `target.generate`: transformers' attention in all models, and no defaults of the checkpoint's.

    Args:
        assistant_model: the draft of assisted generation; how it drafts stays as its own defaults say.
    """
    defaults = target.generation_config
    with own_attention(target, assistant_model):
        # generate fills every None from here, the end-of-text token too
        target.generation_config = transformers.GenerationConfig()
        try:
            yield
        finally:
            target.generation_config = defaults
