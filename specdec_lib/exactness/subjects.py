"""Samplers to put to the test: our own decoding on any path, and transformers' assisted generation.

Each is a `Sampler`: a function of prompts, a number of continuations and a seed. An engine in another process, or in
another language, takes part by a function of that shape.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers import Proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.speculative import Verifier, speculative_decode
from specdec_lib.exactness.joint_law import Sampler
from specdec_lib.models.attention import our_attention
from specdec_lib.models.pair import DRAFTS_FOLDER, EMBEDDED_DRAFTS, TOY, Pair
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
    verification: str | Verifier = "token",
    decode: Callable[..., DecodeResult] = speculative_decode,
) -> Sampler:
    """Our own decoding as a sampler: ragged batches that hold every prompt equally often.

    Args:
        decode: `speculative_decode` or any function with its arguments, such as one that runs another engine path.
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
        rows = rows.reshape(-1, len(prompts), length)[:n]
        return list(rows.transpose(0, 1))

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

    @torch.inference_mode()
    def sample(prompts: Sequence[torch.Tensor], n: int, seed: int) -> list[torch.Tensor]:
        drawn = [torch.empty(n, length, dtype=torch.int64) for _ in prompts]
        with _own_ways(target), torch.random.fork_rng(devices=_cuda_devices(target)):
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


def exported_draft(target: LanguageModel) -> PreTrainedModel:
    """The embedded pair's plain draft, by way of the checkpoint that `make draft-export` writes."""
    with tempfile.TemporaryDirectory() as folder:
        export_plain_draft(DRAFTS_FOLDER / EMBEDDED_DRAFTS["smollm2-135m-embedded-plain"], Path(folder), target)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=target.dtype, use_safetensors=True, trust_remote_code=False
        )
    return model.to(target.device).eval()


def tiny_llamas(vocab_size: int = 8, heads: int = 2) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target and a draft for engines that need a transformers model: random, and quick enough for many samples."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=64,
        initializer_range=0.6,  # as peaked as language
        attn_implementation=our_attention(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        target, draft = (LlamaForCausalLM(config).eval() for _ in range(2))
    for weight, other in zip(draft.parameters(), target.parameters(), strict=True):
        weight.data = 0.8 * other.data + 0.2 * weight.data  # resembles the target, but is not it
    return target, draft


def transformers_subjects(pair: Pair, num_draft_tokens: int, length: int, top_k: int) -> dict[str, tuple[Any, ...]]:
    """transformers' draft-model and prompt-lookup assistance on this pair's weights, top-k off and on.

    Returns:
        by name: the target, the sampling and the sampler. Pairs whose draft transformers cannot load have only prompt
        lookup; the toy pair is replaced by `tiny_llamas`.
    """
    if pair.name == TOY:
        model, draft = tiny_llamas()
        target = LanguageModel(model, "tiny Llama")
    else:
        target, model, draft = pair.target, pair.target.model, _loadable_draft(pair)
    ways: dict[str, dict[str, Any]] = {"prompt lookup": {"prompt_lookup_num_tokens": num_draft_tokens}}
    if draft is not None:
        ways = {"draft model": {"assistant_model": assistant(draft, num_draft_tokens)}} | ways
    subjects = {}
    for way, assistance in ways.items():
        for sampling in (SamplingConfig(), SamplingConfig(top_k=top_k)):
            sample = transformers_sampler(model, sampling=sampling, length=length, **assistance)
            subjects[f"transformers, {way}, {target.name}, top-k {sampling.top_k or 'off'}"] = target, sampling, sample
    return subjects


def _loadable_draft(pair: Pair) -> PreTrainedModel | None:
    if pair.name in EMBEDDED_DRAFTS:
        return exported_draft(pair.target)
    return pair.draft.model if isinstance(pair.draft, LanguageModel) else None


def _cuda_devices(model: PreTrainedModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []


@contextmanager
def _own_ways(model: PreTrainedModel) -> Iterator[None]:
    """transformers' own attention, and no generation defaults of the checkpoint's, for a while."""
    defaults, attention = model.generation_config, model.config._attn_implementation
    model.generation_config = GenerationConfig()  # generate fills every None from here, the end-of-text token too
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.generation_config = defaults
        model.set_attn_implementation(attention)
