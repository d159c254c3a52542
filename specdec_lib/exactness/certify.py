"""Measure the certificate of exactness, level by level; see `certificate` for what the levels are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.exactness.adversaries import (
    ENGINES,
    SETTINGS,
    THOROUGH_SETTINGS,
    Settings,
    enumeration_table,
    for_toys,
)
from specdec_lib.exactness.certificate import WIDTH, Certificate, write_certificate
from specdec_lib.exactness.greedy import greedy_agreement
from specdec_lib.exactness.joint_law import decide, put_to_test
from specdec_lib.exactness.mutant_battery import mutant_table
from specdec_lib.exactness.subjects.in_process import engine_sampler, transformers_subjects
from specdec_lib.exactness.target_law import Law, target_law
from specdec_lib.machine.environment import describe_environment, path_of
from specdec_lib.methods import RULES, label, make_proposer
from specdec_lib.models.pair import TOY, Pair, load_pair, load_study_pair
from specdec_lib.study.prompts import encode_prompts, load_prompts, random_prompts

PROMPTS = ("Monday, Tuesday, Wednesday,", "yes, no, yes, no, yes,")  # few tokens may follow, and lookup finds drafts
GAMMA = 2  # draft tokens per step in the sampling tests
FILTERS = (SamplingConfig(), SamplingConfig(temperature=0.7, top_k=4), SamplingConfig(temperature=1.3, top_p=0.8))
GREEDY_GAMMAS, GREEDY_TOKENS = (4,), 24
FEWER = 4  # the pair's settings but the first take that part of the samples


@dataclass(frozen=True)
class Effort:
    """How much the levels do."""

    toy: int  # continuations of each prompt: of the toy pair,
    mutants: int  # of a mutant,
    tiny: int  # and of a sampler of transformers'
    pair: int = 1  # times the params' correctness_samples, of the study's pair
    engines: Sequence[str] = ENGINES  # on which a tiny Llama is enumerated, where this machine has them
    settings: Settings = SETTINGS  # draft lengths and filters that are enumerated
    gammas: Sequence[int] = GREEDY_GAMMAS  # draft lengths of greedy output


QUICK = Effort(
    toy=4000, mutants=1000, tiny=100, engines=ENGINES[:2], gammas=(1, 4, 8)
)  # for the toy pair: a smoke test
STANDARD = Effort(toy=12_000, mutants=4000, tiny=100)
THOROUGH = Effort(toy=400_000, mutants=1_000_000, tiny=40_000, pair=10, settings=THOROUGH_SETTINGS, gammas=(1, 4, 8))


def certify(params: StudyParams, folder: Path | str, thorough: bool = False) -> Certificate:
    """Run all levels for a study, in minutes or in hours, write `folder/exactness.json` and return the certificate."""
    effort = THOROUGH if thorough else QUICK if params.pair == TOY else STANDARD
    with _level("loading the pair"):
        pairs = [load_study_pair(params, dtype="float32")]
        pairs += [load_study_pair(params)] if params.dtype != "float32" else []
    with _level("enumeration of every path"):
        enumeration = enumeration_table(
            params.methods, params.verification[0], params.device, _engines(effort, pairs), effort.settings
        )
    with _level("mutants"):
        mutants = mutant_table(effort.mutants, params.seed)
    with _level("joint law of sampled tokens"):
        tests, cells = joint_law(params, pairs, effort)
    with _level("greedy output"):
        agreement, divergences = greedy(params, pairs, effort.gammas)
    with _level("transformers' assisted generation"):
        subjects = _subjects(params, effort.tiny)
    facts = describe_environment(params)
    certificate = Certificate(enumeration, tests, cells, mutants, agreement, divergences, subjects, facts)
    write_certificate(certificate, folder)
    return certificate


def _engines(effort: Effort, pairs: list[Pair]) -> list[str]:
    """The engines to enumerate: `torch.compile` takes long to compile, so only where a pair runs through it."""
    used = {pair.target.engine for pair in pairs}
    return [name for name in effort.engines if name != "inductor" or name in used or effort is THOROUGH]


def joint_law(params: StudyParams, pairs: list[Pair], effort: Effort) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gate: the toy pair with all filters and methods, then the study's pair.

    A law is only exact where a token's logits do not depend on what else is computed with it: in float32 as good as,
    and through the kernels exactly, whatever they round to. So the kernels take the tests of the pair where they can.
    """
    toy, first, toys = load_pair(TOY, device=params.device), params.methods[0], for_toys(params.methods)
    rule, *others = [params.verification[0], *(name for name in RULES if name != params.verification[0])]
    runs = [(toy, method, GAMMA, sampling, rule, effort.toy) for method in toys for sampling in FILTERS]
    runs.append((toy, toys[0], 2 * GAMMA, FILTERS[0], rule, effort.toy))
    runs += [(toy, toys[0], 2 * GAMMA, FILTERS[0], other, effort.toy) for other in others]
    if params.pair != TOY:
        pair, samples = pairs[-1] if pairs[-1].target.engine == "kernels" else pairs[0], params.correctness_samples
        fewer = -(-samples // FEWER) * effort.pair
        runs.append((pair, first, GAMMA, FILTERS[0], rule, samples * effort.pair))
        runs.append((pair, first, GAMMA, FILTERS[1], rule, fewer))
        runs += [(pair, method, GAMMA, FILTERS[0], rule, fewer) for method in params.methods[1:]]
        runs += [(pair, first, GAMMA, FILTERS[0], other, fewer) for other in params.verification[1:]]
    laws: dict[object, list[Law]] = {}
    tests, cells = [], []
    for seed, (pair, method, gamma, sampling, rule, samples) in enumerate(runs, start=params.seed):
        target, prompts, length = pair.target, short_prompts(pair, params), gamma + 2
        key = pair.name, sampling, length
        laws[key] = laws.get(key) or [target_law(target, prompt, sampling, length, WIDTH) for prompt in prompts]
        sampler = engine_sampler(
            target,
            make_proposer(method, pair),
            num_draft_tokens=gamma,
            sampling=sampling,
            length=length,
            batch_size=(batch_size := min(max(2**22 // target.vocab_size, 96), 4096)),
            verification=rule,
        )
        options: dict[str, Any] = {"sampling": sampling, "length": length, "samples": samples, "seed": seed}
        each, counted = put_to_test(sampler, target, prompts, laws=laws[key], **options)
        where = {
            "pair": f"{pair.name} ({path_of(target)})",
            "path": path_of(target),
            "method": method,
            "verification": rule,
        }
        where |= {"num_draft_tokens": gamma, "batch_size": batch_size} | vars(sampling)
        way = label(method) if rule == params.verification[0] else f"{label(method)}, rule {rule}"
        name = f"{where['pair']}, {way}, gamma {gamma}, {sampling_name(sampling)}"
        tests.append(each.assign(sampler=name, **where))
        cells.append(counted.assign(sampler=name))
    return decide(pd.concat(tests, ignore_index=True)), pd.concat(cells, ignore_index=True)


def greedy(
    params: StudyParams, pairs: list[Pair], gammas: Sequence[int] = GREEDY_GAMMAS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Greedy agreement of each precision of the pair."""
    tables, divergences = [], []
    for pair in pairs:
        proposers = {method: make_proposer(method, pair) for method in params.methods}
        options: dict[str, Any] = {
            "num_draft_tokens": gammas,
            "max_new_tokens": GREEDY_TOKENS,
            "verification": params.verification[0],
        }
        table, found = greedy_agreement(pair.target, proposers, greedy_prompts(pair, params), **options)
        tables.append(table.assign(path=path_of(pair.target)))
        divergences += found.to_dict("records")
    return pd.concat(tables, ignore_index=True), pd.DataFrame(divergences)


def _subjects(params: StudyParams, samples: int) -> pd.DataFrame:
    """transformers' samplers on a tiny Llama, where many samples are cheap."""
    target, subjects = transformers_subjects(GAMMA, GAMMA + 2)
    prompts, tests = [torch.tensor([1]), torch.tensor([5, 2])], []
    for name, (sampling, sample) in subjects.items():
        options: dict[str, Any] = {"length": GAMMA + 2, "samples": samples, "seed": params.seed, "width": WIDTH}
        each, _ = put_to_test(sample, target, prompts, sampling=sampling, **options)
        tests.append(each.assign(sampler=name, **vars(sampling)))
    return decide(pd.concat(tests, ignore_index=True))


def greedy_prompts(pair: Pair, params: StudyParams) -> list[torch.Tensor]:
    """Four natural prompts: 1-D int64 tensors."""
    if pair.tokenizer is None:
        return random_prompts(pair.target.vocab_size, 4, 0, torch.Generator().manual_seed(params.seed))
    return encode_prompts(load_prompts(params.prompt_set, params.turns)[:4], pair.tokenizer, 0)


def short_prompts(pair: Pair, params: StudyParams) -> list[torch.Tensor]:
    """Two short prompts of different lengths, so that a test spends its time on decoding: 1-D int64 tensors.

    A law that follows few tokens sees most after a text that leaves little choice.
    """
    if pair.tokenizer is None:
        return random_prompts(pair.target.vocab_size, 2, 0, torch.Generator().manual_seed(params.seed))
    return [torch.tensor(pair.tokenizer.encode(text, add_special_tokens=False)) for text in PROMPTS]


def sampling_name(sampling: SamplingConfig) -> str:
    """How a filter setting is named in tables."""
    filters = [f"top-k {sampling.top_k}"] * (sampling.top_k > 0) + [f"top-p {sampling.top_p:g}"] * (sampling.top_p < 1)
    return ", ".join([f"T = {sampling.temperature:g}", *filters])


@contextmanager
def _level(name: str) -> Iterator[None]:
    """Say that a level begins, and how many seconds it took."""
    print(f"certificate: {name} ...", flush=True)
    started = time.monotonic()
    yield
    print(f"certificate: {name} took {time.monotonic() - started:.0f} s", flush=True)
