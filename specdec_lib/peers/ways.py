"""Our decoding and what users would pick instead, each as a function of one prompt, for one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import make_proposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.pair import DRAFTS_FOLDER, EMBEDDED_DRAFTS, Pair, load_pair
from specdec_lib.models.plain_draft import export_plain_draft
from specdec_lib.study.transformers_generate import transformers_decode

OURS, TRANSFORMERS = "specdec_lib", "transformers"
AUTOREGRESSIVE = "autoregressive"
NGRAM = "ngram"  # the draft_id of whatever copies from the text
PLAIN_PAIR = "smollm2-135m-embedded-plain"
LOOKUP_TOKENS = 10  # what the documentation of transformers gives prompt lookup

Decode = Callable[[torch.Tensor, int, SamplingConfig, int], DecodeResult]  # prompt, new tokens, sampling, seed


@dataclass(frozen=True)
class Way:
    """One way to decode: an engine with a method, its settings and its draft."""

    engine: str
    engine_version: str
    method: str  # as the params name it: autoregressive, draft, ngram, composite
    pair: str
    draft_id: str | None  # None without speculation
    num_draft_tokens: int | None  # None: none, or the engine's own adaptive choice
    decode: Decode
    greedy_only: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from the others."""
        return (self.engine, self.method, self.pair, self.draft_id, self.num_draft_tokens)

    def __str__(self) -> str:
        gamma = f" gamma={self.num_draft_tokens}" if self.num_draft_tokens else ""
        return f"{self.engine} {self.method}{gamma}" + (f" with {self.draft_id}" if self.draft_id else "")


def same_draft_pair(pair: Pair) -> Pair:
    """The pair whose draft other engines can load too: itself, or the embedded target with its plain draft."""
    if not isinstance(pair.draft, DraftHead):
        return pair
    return load_pair(PLAIN_PAIR, device=pair.target.device.type, dtype=str(pair.target.dtype).removeprefix("torch."))


def lookup_gammas(gammas: Sequence[int]) -> list[int]:
    """How many tokens are copied at a time, but by transformers: copying is cheap, and pays with more than a draft."""
    return sorted({*gammas, LOOKUP_TOKENS})


def our_ways(pair: Pair, plain: Pair, gammas: Sequence[int]) -> list[Way]:
    """The baseline, and every proposer with every gamma; those that draft also with the draft that others share."""

    def way(here: Pair, method: str, draft_id: str | None, gamma: int | None) -> Way:
        return Way(OURS, version("specdec_lib"), method, here.name, draft_id, gamma, _ours(here, method, gamma))

    ways = [way(pair, AUTOREGRESSIVE, None, None)]
    ways += [way(pair, "ngram", NGRAM, gamma) for gamma in lookup_gammas(gammas)]
    for gamma in gammas:
        for here in [pair] if plain is pair else [pair, plain]:
            ways += [way(here, method, here.draft_id, gamma) for method in ("draft", "composite")]
    return ways


def _ours(pair: Pair, method: str, gamma: int | None) -> Decode:
    def decode(prompt: torch.Tensor, new_tokens: int, sampling: SamplingConfig, seed: int) -> DecodeResult:
        generator = torch.Generator(pair.target.device).manual_seed(seed)
        given: dict[str, Any] = {"max_new_tokens": new_tokens, "sampling": sampling, "generator": generator}
        if gamma is None:
            return autoregressive_decode(pair.target, [prompt], **given)
        return speculative_decode(pair.target, make_proposer(method, pair), [prompt], num_draft_tokens=gamma, **given)

    return decode


def transformers_ways(plain: Pair, draft: PreTrainedModel, gammas: Sequence[int]) -> list[Way]:
    """`generate`, with prompt lookup, and with `draft`: as many tokens as it chooses itself, and each gamma.

    Args:
        plain: the pair whose target they run, on the very same tensors, and whose draft `draft` is.
    """

    def way(method: str, draft_id: str | None, gamma: int | None, **assistance: Any) -> Way:
        decode = _transformers(plain, assistance)
        return Way(TRANSFORMERS, transformers.__version__, method, plain.name, draft_id, gamma, decode)

    ways = [way(AUTOREGRESSIVE, None, None)]
    ways.append(way("ngram", NGRAM, LOOKUP_TOKENS, prompt_lookup_num_tokens=LOOKUP_TOKENS))
    return ways + [
        way("draft", plain.draft_id, gamma, assistant_model=draft, assistant_settings=_drafting(gamma))
        for gamma in (None, *gammas)
    ]


def _drafting(gamma: int | None) -> GenerationConfig:
    """How `generate` drafts: always gamma tokens, or by its own defaults."""
    if gamma is None:
        return GenerationConfig()
    fixed = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    return GenerationConfig(num_assistant_tokens=gamma, **fixed)


def _transformers(pair: Pair, assistance: dict[str, Any]) -> Decode:
    assistance = dict(assistance)
    settings = assistance.pop("assistant_settings", None)

    def decode(prompt: torch.Tensor, new_tokens: int, sampling: SamplingConfig, seed: int) -> DecodeResult:
        if settings is not None:
            assistance["assistant_model"].generation_config = settings
        given: dict[str, Any] = {"max_new_tokens": new_tokens, "sampling": sampling, "seed": seed}
        with _quiet_transformers():
            return transformers_decode(pair.target, [prompt], **given, **assistance)

    return decode


def draft_checkpoint(plain: Pair, folder: Path) -> str:
    """Where others find the draft of `plain`: an embedded one is written to `folder` as an ordinary checkpoint."""
    if plain.name not in EMBEDDED_DRAFTS:
        return plain.draft_id
    with _quiet_transformers():
        export_plain_draft(DRAFTS_FOLDER / EMBEDDED_DRAFTS[plain.name], folder, plain.target)
        assert plain.tokenizer
        plain.tokenizer.save_pretrained(folder)
    return str(folder)


def load_draft(plain: Pair, where: str) -> PreTrainedModel:
    """The checkpoint as transformers loads it, like the target of `plain` on its device."""
    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=plain.target.dtype, use_safetensors=True, trust_remote_code=False
        )
    return model.to(plain.target.device).eval()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars, and no warnings about options that assisted generation itself passes on."""
    log = transformers.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        log.enable_progress_bar()
