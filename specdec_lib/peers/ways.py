"""Our own decoding and transformers', each as a function of one prompt, for one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.methods import AUTOREGRESSIVE, METHODS, make_proposer
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.pair import DRAFTS_FOLDER, EMBEDDED_DRAFTS, Pair, load_pair
from specdec_lib.models.plain_draft import export_plain_draft
from specdec_lib.peers.rows import OURS, TRANSFORMERS
from specdec_lib.study.transformers_generate import transformers_decode

PLAIN_PAIR = "smollm2-135m-embedded-plain"
LOOKUP_TOKENS = 10  # what the documentation of transformers gives prompt lookup

Decode = Callable[[torch.Tensor, int, SamplingConfig, int], DecodeResult]  # prompt [n], new tokens, sampling, seed
Setting = tuple[str, str | None, int | None]  # method, draft_id and gamma, as in `Way`


@dataclass(frozen=True)
class Way:
    """One way to decode."""

    engine: str
    engine_version: str
    pair: str  # the target and the draft that it was loaded with
    method: str  # a name in methods.py
    draft_id: str | None  # None without speculation
    num_draft_tokens: int | None  # gamma; None without speculation, and where the engine chooses it at every step
    decode: Decode
    greedy_only: bool = False  # whether it is compared at temperature 0 only

    @property
    def facts(self) -> dict[str, str | int | None]:
        """What tells it from other ways."""
        return {name: value for name, value in vars(self).items() if name not in ("decode", "greedy_only")}


def settings(methods: Sequence[str], pair_draft_id: str, gammas: Sequence[int]) -> Iterator[Setting]:
    """Each method with each gamma. Methods without a draft model also draft `LOOKUP_TOKENS`, as copying is cheap."""
    for name in methods:
        draft_id = METHODS[name].draft_id(pair_draft_id)
        chosen: Sequence[int | None] = gammas if METHODS[name].uses_pair_draft else sorted({*gammas, LOOKUP_TOKENS})
        for gamma in [None] if draft_id is None else chosen:
            yield name, draft_id, gamma


def same_draft_pair(pair: Pair) -> Pair:
    """The pair whose draft other engines can load too: itself, or the embedded target with its plain draft.

    ValueError for a published draft head, which other engines read in ways of their own.
    """
    if not isinstance(pair.draft, DraftHead):
        return pair
    if pair.name not in EMBEDDED_DRAFTS:
        raise ValueError(f"{pair.draft_id} is a draft head, with which no peer is compared: give a draft model")
    return load_pair(PLAIN_PAIR, device=pair.target.device.type, dtype=str(pair.target.dtype).removeprefix("torch."))


def our_ways(pair: Pair, plain: Pair, params: StudyParams, gammas: Sequence[int]) -> list[Way]:
    """The baseline and the study's methods; those with a draft model also with the draft that others share."""

    def ways(here: Pair, methods: list[str]) -> list[Way]:
        chosen = settings(methods, here.draft_id, gammas)
        return [Way(OURS, version("specdec_lib"), here.name, *each, _ours(here, each, params)) for each in chosen]

    own = ways(pair, [AUTOREGRESSIVE, *params.methods])
    if plain is pair:
        return own
    return own + ways(plain, [method for method in params.methods if METHODS[method].uses_pair_draft])


def _ours(pair: Pair, setting: Setting, params: StudyParams) -> Decode:
    method, _, gamma = setting

    def decode(prompt: torch.Tensor, new_tokens: int, sampling: SamplingConfig, seed: int) -> DecodeResult:
        generator = torch.Generator().manual_seed(seed)
        given: dict[str, Any] = {"max_new_tokens": new_tokens, "sampling": sampling, "generator": generator}
        if gamma is None:
            return autoregressive_decode(pair.target, [prompt], **given)
        given |= {"num_draft_tokens": gamma, "verification": params.verification[0]}
        given["draft_length"] = params.draft_length[0]
        return speculative_decode(pair.target, make_proposer(method, pair), [prompt], **given)

    return decode


def transformers_ways(plain: Pair, draft: PreTrainedModel, gammas: Sequence[int]) -> list[Way]:
    """`generate` of the target of `plain`: alone, with prompt lookup, and with a draft, which also may choose gamma."""
    chosen = list(settings([AUTOREGRESSIVE, "ngram", "draft"], plain.draft_id, gammas))
    chosen.append(("draft", plain.draft_id, None))
    engine = TRANSFORMERS, transformers.__version__, plain.name
    return [Way(*engine, *each, _generate(plain, draft, each)) for each in chosen]


def _generate(pair: Pair, draft: PreTrainedModel, setting: Setting) -> Decode:
    method, _, gamma = setting
    fixed = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    assisted = GenerationConfig() if gamma is None else GenerationConfig(num_assistant_tokens=gamma, **fixed)
    assistance: dict[str, Any] = {"ngram": {"prompt_lookup_num_tokens": gamma}, "draft": {"assistant_model": draft}}

    def decode(prompt: torch.Tensor, new_tokens: int, sampling: SamplingConfig, seed: int) -> DecodeResult:
        draft.generation_config = assisted
        given: dict[str, Any] = {"max_new_tokens": new_tokens, "sampling": sampling, "seed": seed}
        return transformers_decode(pair.target, [prompt], **given, **assistance.get(method, {}))

    return decode


def draft_checkpoint(plain: Pair, folder: Path) -> str:
    """Where other engines find the draft of `plain`; an embedded one is written to `folder` first."""
    if plain.name not in EMBEDDED_DRAFTS:
        assert not isinstance(plain.draft, DraftHead), "a pair of checkpoints has a model for a draft"
        return str(plain.draft.model.name_or_path)  # the very files, whatever a hub has by now
    export_plain_draft(DRAFTS_FOLDER / EMBEDDED_DRAFTS[plain.name], folder, plain.target)
    assert plain.tokenizer
    plain.tokenizer.save_pretrained(folder)
    return str(folder)


def load_draft(plain: Pair, where: str) -> PreTrainedModel:
    """The checkpoint as transformers loads it, in the precision and on the device of the target of `plain`."""
    model = AutoModelForCausalLM.from_pretrained(
        where, dtype=plain.target.dtype, use_safetensors=True, trust_remote_code=False
    )
    return model.to(plain.target.device).eval()
