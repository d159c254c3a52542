"""Attention over a ragged cache, as Hugging Face models call it, and the masks that their own code asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import causal_mask_function
from transformers.utils import logging

NAME = "specdec_grouped"
UNUSED = {  # arguments that change nothing here: the mask has the window, positions are in the keys, nothing is trained
    "cache_position", "is_causal", "output_attentions", "output_hidden_states", "output_router_logits",
    "past_key_values", "position_ids", "return_dict", "sliding_window", "use_cache",
}  # fmt: skip
NO_MASK = (
    f"{NAME} attends by the mask of a ragged cache and got none: call the model through LanguageModel, or "
    "within as_transformers_does if transformers is to call it"
)
CLOSE = 1e-4  # relative difference in float32 between our attention and the model's own


class NotServedError(Exception):
    """An engine does not compute what the model's own code does; the message is the reason."""


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, m, D]
    key: torch.Tensor,  # [B, H_kv, S, D]
    value: torch.Tensor,  # [B, H_kv, S, D_v]
    attention_mask: torch.Tensor | None,  # [B, 1, m, S], additive
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,  # [H], sinks: logits that attend to nothing
    **kwargs: object,
) -> tuple[torch.Tensor, None]:  # [B, m, H, D_v]
    """Attention whose heads of a group become more query rows: nothing is repeated.

    Raises:
        ValueError: there is no mask.
        NotServedError: the model hands over what is not known here.
    """
    unknown = [name for name in kwargs if name not in UNUSED and kwargs[name] is not None]
    if unknown:
        raise NotServedError(f"its attention has {', '.join(unknown)}")
    if attention_mask is None:
        raise ValueError(NO_MASK)
    batch, heads, m, _ = query.shape
    group = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], group * m, -1)
    mask = attention_mask.repeat(1, 1, group, 1) if group > 1 else attention_mask
    if softcap is None and s_aux is None:
        out = scaled_dot_product_attention(packed, key, value, attn_mask=mask.to(query.dtype), scale=scaling)
    else:
        sinks = None if s_aux is None else s_aux.view(key.shape[1], group).repeat_interleave(m, dim=1)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = _written_out(packed, key, value, mask, scale, softcap, sinks)
    return out.reshape(batch, heads, m, value.shape[-1]).transpose(1, 2).contiguous(), None


def _written_out(
    query: torch.Tensor,  # [B, H_kv, n, D]
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,  # [B, 1, n, S]
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,  # [H_kv, n]
) -> torch.Tensor:  # [B, H_kv, n, D_v]
    """Attention with capped scores (Gemma 2, arXiv 2408.00118) or sinks (gpt-oss), which PyTorch's function lacks."""
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, :, None].expand(len(scores), -1, -1, 1)
        scores = torch.cat([scores, column], dim=-1)
    chance = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return chance[..., : key.shape[2]] @ value


def ragged_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: object,  # [B, m], the position of each query; or [B, m, 3], see `cache.Fork`
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    dtype: torch.dtype = torch.float32,
    **kwargs: object,
) -> torch.Tensor:  # [B, 1, m, S], additive
    """What the model's own code calls a mask (causal, sliding, chunked), at the positions of each row.

    ValueError unless the positions are those of a ragged cache.
    """
    if not isinstance(q_offset, torch.Tensor) or q_offset.shape[:2] != (batch_size, q_length):
        raise ValueError(NO_MASK)
    rows, places = (torch.arange(size, device=q_offset.device) for size in (batch_size, kv_length))
    head = places[:1, None, None]
    if q_offset.dim() == 2:
        seen = mask_function(rows[:, None, None, None], head, q_offset[:, None, :, None], places)
    else:
        position, begin, end = (part[:, None, :, None] for part in q_offset.unbind(dim=2))
        text = places - (places >= end) * (end - begin)  # the position of what lies in each slot, [B, 1, m, S]
        seen = mask_function(rows[:, None, None, None], head, position, text) & ((places < begin) | (places >= end))
    mask = torch.zeros(batch_size, 1, q_length, kv_length, dtype=dtype, device=q_offset.device)
    return mask.masked_fill_(~seen, float("-inf"))


def our_attention() -> str:
    """Tell transformers of `grouped_attention` and its masks; returns their name there."""
    transformers.AttentionInterface.register(NAME, grouped_attention)
    transformers.AttentionMaskInterface.register(NAME, ragged_mask)
    return NAME


@contextmanager
def attending(model: transformers.PreTrainedModel, implementation: str) -> Iterator[None]:
    """Within this block the model attends by this implementation: "eager" as its own code is written."""
    before = model.config._attn_implementation
    set_attention(model, implementation)
    try:
        yield
    finally:
        set_attention(model, before)


def set_attention(model: transformers.PreTrainedModel, implementation: str) -> bool:
    """Let the model attend by this implementation; whether its code can."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of models that cannot
    try:
        model.set_attn_implementation(implementation)
    finally:
        logging.set_verbosity(verbosity)
    return model.config._attn_implementation == implementation


@contextmanager
def compared_with_own() -> Iterator[None]:
    """Within this block, each call of our attention is repeated in float32 and compared with the model's own.

    NotServedError where the two differ, whatever the element type of the model hides.
    """

    def compared(module: torch.nn.Module, *tensors: Any, **options: Any) -> tuple[torch.Tensor, None]:
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if own is None:
            raise NotServedError("its attention is no function of its own to compare with")
        wide: list[Any] = [None if tensor is None else tensor.float() for tensor in tensors]
        ours, theirs = (attend(module, *wide, **options)[0] for attend in (grouped_attention, own))
        if (ours - theirs).norm() > CLOSE * theirs.norm():
            raise NotServedError("it attends in a way of its own")
        return grouped_attention(module, *tensors, **options)

    our_attention()
    transformers.AttentionInterface.register(NAME, compared)
    try:
        yield
    finally:
        our_attention()


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
            if model is not None and model.config._attn_implementation == NAME:  # generate makes no ragged masks
                stack.enter_context(attending(model, "sdpa" if model._supports_sdpa else "eager"))
        # generate fills every None from here, the end-of-text token too
        stack.callback(setattr, target, "generation_config", target.generation_config)
        target.generation_config = transformers.GenerationConfig()
        yield
