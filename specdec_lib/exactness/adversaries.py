"""What is enumerated: pairs made to break a rule of acceptance, and a tiny Llama on each engine of this machine.

The Llamas have one layer. They are in float64, where all engines agree to rounding, but for the kernels, which know
bfloat16 alone: there a law is exact because a row's logits have the same bits whatever the other rows are. What
`torch.compile` made is compared with the law of the model as written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.draft_length import DraftLength
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.verification import Verify
from specdec_lib.exactness.enumeration import enumerate_output, tolerance
from specdec_lib.exactness.target_law import target_law
from specdec_lib.machine.environment import path_of
from specdec_lib.methods import FIXED_LENGTH, METHODS, RULES, make_proposer
from specdec_lib.models.attention import our_attention
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.toy import ToyModel
from specdec_lib.models.translation import Translation

PROMPTS = [torch.tensor([1]), torch.tensor([2, 0]), torch.tensor([0, 1, 2, 1])]  # ragged: one batch holds all
NEVER = -1e6  # a logit whose probability is exactly 0
PLAIN = SamplingConfig()
FILTERS = (PLAIN, SamplingConfig(temperature=0.7, top_k=2), SamplingConfig(temperature=1.3, top_p=0.8))

Settings = Sequence[tuple[int, SamplingConfig]]  # gamma and filters
SETTINGS: Settings = (
    *((1, sampling) for sampling in FILTERS),
    *((2, sampling) for sampling in FILTERS[1:]),
    (4, SamplingConfig(temperature=0.7, top_k=2, top_p=0.95)),
)
THOROUGH_SETTINGS: Settings = (*SETTINGS, (2, PLAIN), *((3, sampling) for sampling in FILTERS), (4, FILTERS[1]))

OTHER_RULES: Settings = SETTINGS[:5]  # of the rules that the study does not use

ADAPTIVE = ("confidence:0.6", "acceptance:0.3")  # lengths that change from step to step; with toys, often

ENGINES = ("eager", "kernels", "inductor")
ENGINE_SETTINGS: Settings = ((1, PLAIN), (2, FILTERS[1]), (2, SamplingConfig(2.0, top_p=0.9)))
VOCABULARY = 4  # the least that the kernels multiply


def enumeration_table(
    methods: Sequence[str],
    verification: str,
    device: str,
    engines: Sequence[str] = ENGINES,
    settings: Settings = SETTINGS,
) -> pd.DataFrame:
    """Enumerate every method: on all adversarial pairs if only the pair's draft proposes, else on the random one.

    A method that needs layers, or that drafts two chains, is enumerated on a tiny Llama of two layers.

    The first method of one chain is enumerated with every other rule too, with draft lengths that adapt, and with a
    tiny Llama on each of the `engines` that this machine has. Each line is that of `enumeration_line`, with method,
    rule and length.
    """
    pairs = adversarial_pairs()
    drafts = [name for name in methods if METHODS[name].pieces == (name,) and METHODS[name].uses_pair_draft]
    toys = for_toys(methods)
    fixed, first = (verification, FIXED_LENGTH), next((name for name in toys if METHODS[name].chains == 1), "draft")
    layered = [name for name in methods if METHODS[name].needs_layers or METHODS[name].chains > 1]
    runs = [(method, *fixed, pairs["random"], settings) for method in toys]
    runs += [(method, *fixed, layered_pair(), ENGINE_SETTINGS) for method in layered]
    runs += [(first, rule, FIXED_LENGTH, pairs["random"], OTHER_RULES) for rule in RULES if rule != verification]
    runs += [(first, verification, length, pairs["random"], OTHER_RULES) for length in ADAPTIVE]
    runs += [
        (method, *fixed, pair, settings)
        for method in drafts
        for name, pair in pairs.items()
        if name != "random" and not (METHODS[method].chains > 1 and _spells(pair))
    ]
    runs += [(first, *fixed, pair, ENGINE_SETTINGS) for pair in engine_pairs(device, engines)]
    lines = []
    for method, rule, length, pair, chosen in runs:
        proposer = make_proposer(method, pair)
        for gamma, sampling in chosen:
            unusual = proposer.looks_ahead or (proposer.chains > 1 and gamma > 1)
            if unusual and (gamma, sampling) not in OTHER_RULES:
                continue  # too many paths
            prompts = PROMPTS[: 1 if gamma > 2 else None]  # longer drafts have many paths
            line = enumeration_line(pair, proposer, prompts, gamma, sampling, rule, length)
            lines.append({"method": method, "verification": rule, "draft_length": length} | line)
    return pd.DataFrame(lines)


def _spells(pair: Pair) -> bool:
    """Whether the draft has another vocabulary, which two chains do not serve."""
    return isinstance(pair.draft, LanguageModel) and pair.draft.translation is not None


def for_toys(methods: Sequence[str]) -> list[str]:
    """The methods that work on toys; a draft model where none does."""
    return [name for name in methods if not METHODS[name].needs_layers] or ["draft"]


def enumeration_line(
    pair: Pair,
    proposer: Proposer,
    prompts: Sequence[torch.Tensor],
    gamma: int,
    sampling: SamplingConfig,
    verification: str | Verify = "token",
    draft_length: str | DraftLength = FIXED_LENGTH,
) -> dict[str, object]:
    """What comes of one enumeration, until a whole draft and its bonus token are emitted.

    Returns:
        pair, path (how it is computed), num_draft_tokens, temperature, top_k, top_p, prompts, new_tokens, paths,
        largest_error, tolerance, unexplained.
    """
    new = gamma + 2
    options: dict[str, Any] = {"max_new_tokens": new, "num_draft_tokens": gamma, "sampling": sampling}
    options |= {"verification": verification, "draft_length": draft_length}
    found = enumerate_output(pair.target, proposer, prompts, **options)
    error = found.error([target_law(pair.target, prompt, sampling, new) for prompt in prompts])
    return (
        {"pair": pair.name, "path": path_of(pair.target), "num_draft_tokens": gamma}
        | vars(sampling)
        | {"prompts": len(prompts), "new_tokens": new, "paths": found.paths, "largest_error": error}
        | {"tolerance": tolerance(pair.target.dtype), "unexplained": found.unexplained}
    )


def toy_pair(name: str, target: torch.Tensor, draft: torch.Tensor, translation: Translation | None = None) -> Pair:
    """A pair of toys with these tables of logits `[V, V, V]`; with a translation they may differ in V."""
    models = LanguageModel(ToyModel(target), "target"), LanguageModel(ToyModel(draft), "draft")
    models[1].translation = translation
    return Pair(name, *models, None, "target", "draft", files={})


def adversarial_pairs() -> dict[str, Pair]:
    """Toys in float64, by what is difficult about them."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 3, 3)

    def normal(scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    def only(*tokens: int) -> torch.Tensor:
        logits = torch.full(shape, NEVER, dtype=torch.float64)
        logits[..., list(tokens)] = 0.0
        return logits

    table = normal(2.0)
    impossible = torch.rand(shape, generator=generator) < 0.3
    impossible[..., 0] = False
    one_hot = torch.nn.functional.one_hot(normal(1.0).argmax(dim=-1), 3).double()
    tied = table.clone()
    tied[..., 1] = tied[..., 0]  # the noise decides which of the two a filter keeps, in target and draft apart
    tables = {
        "random": (table, table + normal(1.0)),
        "draft equals target": (table, table),
        "draft reverses target": (table, -table),
        "disjoint supports": (table + only(0, 1), table + only(2)),
        "one-hot draft": (table, (one_hot - 1) * -NEVER),
        "zero-probability tokens": (
            table.masked_fill(impossible, NEVER),
            normal(2.0).masked_fill(impossible.roll(1, dims=1), NEVER),
        ),
        "near-ties": (tied + normal(1e-9), tied + normal(1e-9)),
    }
    pairs = {name: toy_pair(name, *pair) for name, pair in tables.items()}
    other = normal(2.0)
    for name, retokenise in (("other vocabulary", None), ("other vocabulary, as text", _retokenise)):
        translation = Translation.of([2, -1, 0], [[2], [1, 2], [0]], retokenise)
        pairs[name] = toy_pair(name, table, other, translation)
    return pairs


def _retokenise(draft_tokens: Sequence[int]) -> list[int]:
    """The target's tokens that read as these of the other vocabulary; what is left at the end is dropped."""
    tokens = {(2,): 0, (1, 2): 1, (0,): 2}
    found, rest = [], tuple(draft_tokens)
    while token := next((token for token in tokens if rest[: len(token)] == token), None):
        found.append(tokens[token])
        rest = rest[len(token) :]
    return found


def engine_pairs(device: str, engines: Sequence[str] = ENGINES) -> Iterator[Pair]:
    """A tiny Llama and its draft on each engine that can be had here: the same weights, but for their precision."""
    for engine in engines:
        target, draft = (_with_engine(model.to(device), engine) for model in tiny_llamas(VOCABULARY, heads=1))
        if target.engine == draft.engine == engine:
            yield Pair("tiny Llama", target, draft, None, "tiny Llama", "tiny Llama", files={})


def layered_pair() -> Pair:
    """A tiny Llama of two layers and its draft, in float64."""
    target, draft = (_with_engine(model, "eager") for model in tiny_llamas(VOCABULARY, heads=1, layers=2))
    return Pair("tiny Llama of two layers", target, draft, None, "tiny Llama", "tiny Llama", files={})


def tiny_llamas(vocab_size: int = 8, heads: int = 2, layers: int = 1) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A random target and draft of transformers' classes, quick enough for many samples."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=layers,
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


def _with_engine(model: PreTrainedModel, engine: str) -> LanguageModel:
    model = model.bfloat16() if engine == "kernels" else _all_in_float64(model)
    language_model = LanguageModel(model, "tiny Llama", compiled=engine != "eager")
    if engine == "inductor":
        language_model.compile()
    return language_model


def _all_in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """With other norms: Llama's are computed in float32, whatever the model is in."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, LlamaRMSNorm):
            same = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, device=norm.weight.device)
            same.weight = norm.weight
            model.set_submodule(name, same)
    return model.double()
