"""Samplers to put to the test: our own decoding on any engine, and transformers' assisted generation.

Each is a `Sampler`: a function of prompts, a number of continuations and a seed. An engine in another process, or in
another language, takes part by a function of that shape.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.exactness.adversaries import tiny_llamas
from specdec_lib.exactness.certificate import WIDTH
from specdec_lib.exactness.joint_law import Sampler
from specdec_lib.models.runner import LanguageModel
from specdec_lib.study.transformers_generate import transformers_decode


def engine_sampler(
    target: LanguageModel,
    proposer: Proposer,
    *,
    length: int,
    batch_size: int,
    decode: Callable[..., DecodeResult] = speculative_decode,
    **options: Any,
) -> Sampler:
    """Our own decoding with these `options`, or `decode` in its place: ragged batches that hold every prompt alike."""

    def sample(prompts: Sequence[torch.Tensor], n: int, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator(target.device).manual_seed(seed)
        copies = max(batch_size // len(prompts), 1)
        given = {"max_new_tokens": length, "generator": generator} | options
        batches = [decode(target, proposer, list(prompts) * copies, **given).tokens for _ in range(-(-n // copies))]
        rows = torch.stack([torch.stack(tokens) for tokens in batches])  # [batches, copies * prompts, length]
        return list(rows.reshape(-1, len(prompts), length)[:n].transpose(0, 1))

    return sample


def transformers_sampler(target: LanguageModel, *, sampling: SamplingConfig, length: int, **assistance: Any) -> Sampler:
    """`generate` of transformers, one continuation at a time, as `assistance` demands; see `transformers_decode`."""

    def sample(prompts: Sequence[torch.Tensor], n: int, seed: int) -> list[torch.Tensor]:
        seeds = random.Random(seed)

        def continuation(prompt: torch.Tensor) -> torch.Tensor:
            options: dict[str, Any] = {"max_new_tokens": length, "sampling": sampling, "seed": seeds.randrange(2**63)}
            return transformers_decode(target, [prompt], **options, **assistance).tokens[0]

        return [torch.stack([continuation(prompt) for _ in range(n)]) for prompt in prompts]

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
    """A tiny Llama; and by name sampling and sampler of transformers' assistance with it, top-k off and on."""
    model, draft = tiny_llamas()
    ways: dict[str, dict[str, Any]] = {
        "draft model": {"assistant_model": assistant(draft, num_draft_tokens)},
        "prompt lookup": {"prompt_lookup_num_tokens": num_draft_tokens},
    }
    target = LanguageModel(model, "tiny Llama")
    return target, {
        f"transformers, {way}, tiny Llama, top-k {sampling.top_k or 'off'}": (
            sampling,
            transformers_sampler(target, sampling=sampling, length=length, **assistance),
        )
        for way, assistance in ways.items()
        for sampling in (SamplingConfig(), SamplingConfig(top_k=WIDTH))
    }
