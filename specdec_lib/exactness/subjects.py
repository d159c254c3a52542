"""Samplers to put to the test: our own decoding on any engine, and transformers' assisted generation.

Each is a `Sampler`: a function of prompts, a number of continuations and a seed. An engine in another process, or in
another language, takes part by a function of that shape.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.verification import Verify
from specdec_lib.exactness.certificate import WIDTH
from specdec_lib.exactness.joint_law import Sampler
from specdec_lib.models.attention import as_transformers_does
from specdec_lib.models.pair import DRAFTS_FOLDER, EMBEDDED_DRAFTS, Pair
from specdec_lib.models.plain_draft import export_plain_draft
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
        with as_transformers_does(*models), torch.random.fork_rng(devices=devices):
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
    target: LanguageModel, draft: PreTrainedModel | None, num_draft_tokens: int, length: int
) -> dict[str, tuple[SamplingConfig, Sampler]]:
    """transformers' draft-model and prompt-lookup assistance on these weights, top-k off and on, by name.

    Args:
        draft: as transformers loads it; None for prompt lookup alone.
    """
    ways: dict[str, dict[str, Any]] = {"prompt lookup": {"prompt_lookup_num_tokens": num_draft_tokens}}
    if draft is not None:
        ways = {"draft model": {"assistant_model": assistant(draft, num_draft_tokens)}} | ways
    return {
        f"transformers, {way}, {target.name}, top-k {sampling.top_k or 'off'}": (
            sampling,
            transformers_sampler(target.model, sampling=sampling, length=length, **assistance),
        )
        for way, assistance in ways.items()
        for sampling in (SamplingConfig(), SamplingConfig(top_k=WIDTH))
    }


def draft_of_transformers(pair: Pair) -> PreTrainedModel | None:
    """The pair's draft as a model of transformers' own, or None where there is none.

    That of the embedded pair is its plain draft, by way of the checkpoint that `make draft-export` writes.
    """
    if pair.name not in EMBEDDED_DRAFTS:
        return pair.draft.model if isinstance(pair.draft, LanguageModel) else None
    with tempfile.TemporaryDirectory() as folder:
        export_plain_draft(DRAFTS_FOLDER / EMBEDDED_DRAFTS["smollm2-135m-embedded-plain"], Path(folder), pair.target)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=pair.target.dtype, use_safetensors=True, trust_remote_code=False
        )
    return model.to(pair.target.device).eval()
