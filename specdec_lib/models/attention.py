"""Attention over a ragged cache, as Hugging Face models call it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers.utils import logging

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
    """Attention whose heads of a group become more query rows: nothing is repeated. ValueError without a mask."""
    assert kwargs.get("softcap") is None, "capped attention logits are not supported"
    if attention_mask is None:
        raise ValueError(
            f"{NAME} attends by the mask of a ragged cache and got none: call the model through LanguageModel, or "
            "within as_transformers_does if transformers is to call it"
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
def own_attention(model: transformers.PreTrainedModel) -> Iterator[None]:
    """Within this block the model attends as its own code is written, without a kernel."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


@contextmanager
def as_transformers_does(
    target: transformers.PreTrainedModel, assistant_model: transformers.PreTrainedModel | None = None
) -> Iterator[None]:
    """For a call of `target.generate`: transformers' attention in all models, and no defaults of the checkpoint's.

    And no warnings about options that assisted generation itself passes on, once for each call.
    """
    with ExitStack() as stack:
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        for model in (target, assistant_model):
            if model is not None:  # generate makes no masks for our attention
                stack.callback(model.set_attn_implementation, model.config._attn_implementation)
                model.set_attn_implementation("sdpa")
        # generate fills every None from here, the end-of-text token too
        stack.callback(setattr, target, "generation_config", target.generation_config)
        target.generation_config = transformers.GenerationConfig()
        yield
