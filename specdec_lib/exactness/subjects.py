"""Samplers to put to the test: our own decoding on any engine, and transformers' assisted generation.

Each is a `Sampler`: a function of prompts, a number of continuations and a seed. An engine in another process, or in
another language, takes part by a function of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.verification import Verify
from specdec_lib.exactness.adversaries import tiny_llamas
from specdec_lib.exactness.certificate import WIDTH
from specdec_lib.exactness.joint_law import Sampler
from specdec_lib.models.attention import as_transformers_does
from specdec_lib.models.runner import LanguageModel


def engine_sampler(
    target: LanguageModel,
    proposer: Proposer,
    *,
    num_draft_tokens: int,
    sampling: SamplingConfig,
    length: int,
    batch_size: int,
    verification: str | Verify = "token",
    decode: Callable[..., DecodeResult] = speculative_decode,
) -> Sampler:
    """Our own decoding as a sampler: ragged batches that hold every prompt equally often.

    Args:
        decode: `speculative_decode` or any function with its arguments.
    """

    def sample(prompts: Sequence[torch.Tensor], n: int, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator(target.device).manual_seed(seed)
        copies = max(batch_size // len(prompts), 1)
        batches = [
            decode(
                target,
                proposer,
                list(prompts) * copies,
                max_new_tokens=length,
                num_draft_tokens=num_draft_tokens,
                sampling=sampling,
                generator=generator,
                verification=verification,
            ).tokens
            for _ in range(-(-n // copies))
        ]
        rows = torch.stack([torch.stack(tokens) for tokens in batches])  # [batches, copies * prompts, length]
        return list(rows.reshape(-1, len(prompts), length)[:n].transpose(0, 1))

    return sample


def transformers_sampler(
    target: PreTrainedModel, *, sampling: SamplingConfig, length: int, **assistance: Any
) -> Sampler:
    """`generate` of transformers, one continuation at a time, as its assisted generation demands.

    Args:
        assistance: `assistant_model=` for a draft model, or `prompt_lookup_num_tokens=` for n-grams.
    """
    settings = GenerationConfig(
        max_new_tokens=length,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        eos_token_id=None,
        pad_token_id=0,
    )
    devices = [target.device] if target.device.type == "cuda" else []

    @torch.inference_mode()
    def sample(prompts: Sequence[torch.Tensor], n: int, seed: int) -> list[torch.Tensor]:
        drawn = [torch.empty(n, length, dtype=torch.int64) for _ in prompts]
        models = target, assistance.get("assistant_model")
        with _without_warnings(), as_transformers_does(*models), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for prompt, rows in zip(prompts, drawn, strict=True):
                ids = prompt[None].to(target.device)
                mask = torch.ones_like(ids)
                for row in rows:
                    text = target.generate(ids, attention_mask=mask, generation_config=settings, **assistance)
                    row.copy_(text[0, len(prompt) :])
        return drawn

    return sample


def assistant(model: PreTrainedModel, num_draft_tokens: int) -> PreTrainedModel:
    """A model that `generate` will draft with: always `num_draft_tokens` tokens, whatever its confidence."""
    model.generation_config = GenerationConfig(
        num_assistant_tokens=num_draft_tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    return model


def transformers_subjects(
    num_draft_tokens: int, length: int
) -> tuple[LanguageModel, dict[str, tuple[SamplingConfig, Sampler]]]:
    """transformers' draft-model and prompt-lookup assistance on a tiny Llama, top-k off and on.

    Returns:
        the target, and by name the sampling and the sampler.
    """
    model, draft = tiny_llamas()
    ways: dict[str, dict[str, Any]] = {
        "draft model": {"assistant_model": assistant(draft, num_draft_tokens)},
        "prompt lookup": {"prompt_lookup_num_tokens": num_draft_tokens},
    }
    return LanguageModel(model, "tiny Llama"), {
        f"transformers, {way}, tiny Llama, top-k {sampling.top_k or 'off'}": (
            sampling,
            transformers_sampler(model, sampling=sampling, length=length, **assistance),
        )
        for way, assistance in ways.items()
        for sampling in (SamplingConfig(), SamplingConfig(top_k=WIDTH))
    }


@contextmanager
def _without_warnings() -> Iterator[None]:
    """No warnings about options that assisted generation itself passes on, once for each continuation."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
