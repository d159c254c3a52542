"""Measure the certificate of exactness, level by level; see `certificate` for what the levels are."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import transformers

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.exactness.adversaries import ENGINES, SETTINGS, Settings, enumeration_table, tiny_llamas
from specdec_lib.exactness.certificate import WIDTH, Certificate, with_columns, write_certificate
from specdec_lib.exactness.greedy import greedy_agreement
from specdec_lib.exactness.joint_law import Sampler, decide, put_to_test
from specdec_lib.exactness.mutant_battery import mutant_table
from specdec_lib.exactness.subjects import draft_of_transformers, engine_sampler, transformers_subjects
from specdec_lib.exactness.target_law import Law, target_law
from specdec_lib.machine.engine_facts import path_of
from specdec_lib.machine.environment import describe_environment
from specdec_lib.methods import label, make_proposer
from specdec_lib.models.pair import TOY, Pair, load_pair, load_study_pair
from specdec_lib.models.runner import PREFILL_CHUNK, LanguageModel
from specdec_lib.study.prompts import encode_prompts, load_prompts, random_prompts

PROMPTS = ("Monday, Tuesday, Wednesday,", "yes, no, yes, no, yes,")  # few tokens may follow, and lookup finds drafts
GAMMA = 2  # draft tokens per step in the sampling tests
LENGTH = GAMMA + 2  # new tokens; leaves the first step room for all of its draft
FILTERS = (SamplingConfig(), SamplingConfig(temperature=0.7, top_k=4), SamplingConfig(temperature=1.3, top_p=0.8))
LONG_PROMPT = PREFILL_CHUNK + 88
FEWER = 4  # the pair's settings but the first take that part of the samples, unless thorough
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Effort:
    """How many continuations of each prompt the levels take.

    Attributes:
        toy, mutants, tiny: of the toy pair, of each mutant at most, of each of transformers' samplers.
        pair: times the params' correctness_samples, of the study's pair.
        engines: on which a tiny Llama is enumerated, where this machine has them.
        settings: draft lengths and filters that are enumerated.
    """

    toy: int
    mutants: int
    tiny: int
    pair: int = 1
    engines: tuple[str, ...] = ENGINES
    settings: Settings = SETTINGS
    thorough: bool = False


QUICK = Effort(toy=4000, mutants=1000, tiny=100, engines=ENGINES[:2])  # for the toy pair: a smoke test
STANDARD = Effort(toy=20_000, mutants=4000, tiny=400)
THOROUGH = Effort(toy=400_000, mutants=1_000_000, tiny=40_000, pair=10, thorough=True)


@dataclass(frozen=True)
class _Run:
    """One setting of our own sampler under test."""

    pair: Pair
    method: str
    samples: int
    sampling: SamplingConfig = FILTERS[0]
    gamma: int = GAMMA


def certify(params: StudyParams, folder: Path | str, thorough: bool = False) -> Certificate:
    """Run all levels for a study, write `folder/exactness.json` and return the certificate.

    Args:
        thorough: ten times the samples of the pair, more of everything else, and transformers on the study's pair.
    """
    effort = THOROUGH if thorough else QUICK if params.pair == TOY else STANDARD
    with _quiet_transformers():
        with _level("enumeration of every path"):
            options = {"thorough": thorough, "engines": effort.engines, "settings": effort.settings}
            enumeration = enumeration_table(params.methods, params.verification, params.device, **options)
        with _level("mutants"):
            mutants = mutant_table(effort.mutants, params.seed)
        with _level("loading the pair"):
            pairs = [load_study_pair(params, dtype="float32")]
            pairs += [load_study_pair(params)] if params.dtype != "float32" else []
        with _level("joint law of sampled tokens"):
            tests, cells = _joint_law(params, pairs, effort)
        with _level("greedy output"):
            greedy, divergences = _greedy(params, pairs, thorough)
        with _level("transformers' assisted generation"):
            subjects = _subjects(params, pairs[0], effort)
    named = {"enumeration": enumeration, "tests": tests, "cells": cells, "mutants": mutants, "greedy": greedy}
    named |= {"divergences": divergences, "subjects": subjects}
    tables = {name: with_columns(name, table) for name, table in named.items()}
    certificate = Certificate(**tables, environment=describe_environment(params))
    write_certificate(certificate, folder)
    return certificate


def _joint_law(params: StudyParams, pairs: list[Pair], effort: Effort) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gate: the toy pair with all filters and methods, then the study's pair.

    A law is only exact where a token's logits do not depend on what else is computed with it: in float32 as good as,
    and through the kernels exactly, whatever they round to. So the kernels take the tests of the pair where they can.
    """
    toy = load_pair(TOY, device=params.device)
    runs = [_Run(toy, method, effort.toy, sampling) for method in params.methods for sampling in FILTERS]
    runs.append(_Run(toy, params.methods[0], effort.toy, gamma=2 * GAMMA))
    if params.pair != TOY:
        tested = pairs[0] if pairs[-1].target.fused is None else pairs[-1]
        samples = params.correctness_samples * effort.pair
        fewer = samples if effort.thorough else -(-samples // FEWER)
        first, *others = params.methods
        runs.append(_Run(tested, first, samples))
        runs += [_Run(tested, first, fewer, sampling) for sampling in FILTERS[1 : 3 if effort.thorough else 2]]
        runs += [_Run(tested, method, fewer) for method in others]
    laws: dict[object, list[Law]] = {}
    tests, cells = [], []
    for seed, run in enumerate(runs, start=params.seed):
        prompts, length = short_prompts(run.pair, params), run.gamma + 2
        key = run.pair.name, run.sampling, length
        if key not in laws:
            laws[key] = [target_law(run.pair.target, prompt, run.sampling, length, WIDTH) for prompt in prompts]
        each, counted = _test(params, run, prompts, laws[key], seed)
        tests.append(each)
        cells.append(counted)
    return decide(pd.concat(tests, ignore_index=True)), pd.concat(cells, ignore_index=True)


def _test(
    params: StudyParams, run: _Run, prompts: list[torch.Tensor], laws: list[Law], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sample one setting and test it; every line says what was tested."""
    target, gamma, sampling = run.pair.target, run.gamma, run.sampling
    batch_size = min(max(2**22 // target.vocab_size, 96), 4096) // len(prompts) * len(prompts)
    sampler = engine_sampler(
        target,
        make_proposer(run.method, run.pair),
        num_draft_tokens=gamma,
        sampling=sampling,
        length=gamma + 2,
        batch_size=batch_size,
        verification=params.verification,
    )
    options = {"sampling": sampling, "length": gamma + 2, "samples": run.samples, "seed": seed, "width": WIDTH}
    tests, cells = put_to_test(sampler, target, prompts, laws=laws, **options)
    path = path_of(target)
    where = {"pair": f"{run.pair.name} ({path})", "path": path, "method": run.method, "num_draft_tokens": gamma}
    name = f"{where['pair']}, {label(run.method)}, gamma {gamma}, {sampling_name(sampling)}"
    return tests.assign(sampler=name, batch_size=batch_size, **where, **vars(sampling)), cells.assign(sampler=name)


def _subjects(params: StudyParams, pair: Pair, effort: Effort) -> pd.DataFrame:
    """transformers' samplers on tiny Llamas, where many samples are cheap; if thorough, on the study's pair too."""
    target, draft = tiny_llamas()
    tiny = LanguageModel(target, "tiny Llama")
    runs = [(tiny, draft, [torch.tensor([1]), torch.tensor([5, 2])], effort.tiny)]
    if effort.thorough and params.pair != TOY:
        of_pair = pair.target, draft_of_transformers(pair), short_prompts(pair, params)[:1], params.correctness_samples
        runs.append(of_pair)
    tests = []
    for model, assistant, prompts, samples in runs:
        for name, (sampling, sample) in transformers_subjects(model, assistant, GAMMA, LENGTH).items():
            options = {"length": LENGTH, "samples": samples, "seed": params.seed, "width": WIDTH}
            each, _ = put_to_test(sample, model, prompts, sampling=sampling, **options)
            tests.append(each.assign(sampler=name, **vars(sampling)))
    return decide(pd.concat(tests, ignore_index=True))


def _greedy(params: StudyParams, pairs: list[Pair], long: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Greedy agreement of each precision of the pair."""
    tables, divergences = [], []
    for pair in pairs:
        proposers = {method: make_proposer(method, pair) for method in params.methods}
        options = {"num_draft_tokens": (1, 4, 8), "max_new_tokens": 32, "verification": params.verification}
        table, found = greedy_agreement(pair.target, proposers, greedy_prompts(pair, params, long), **options)
        tables.append(table.assign(path=path_of(pair.target)))
        divergences += found.to_dict("records")
    return pd.concat(tables, ignore_index=True), pd.DataFrame(divergences)


def greedy_prompts(pair: Pair, params: StudyParams, long: bool) -> list[torch.Tensor]:
    """Four natural prompts, one of them longer than a prefill pass if `long`: 1-D int64 tensors."""
    if pair.tokenizer is None:
        return random_prompts(pair.target.vocab_size, 4, 0, torch.Generator().manual_seed(params.seed))
    prompts, length = load_prompts(params.prompt_set)[:4], LONG_PROMPT if long else 0
    return encode_prompts(prompts[:3], pair.tokenizer, 0) + encode_prompts(prompts[3:], pair.tokenizer, length)


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
    """Log that a level begins, and how many seconds it took."""
    logger.info("certificate: %s ...", name)
    started = time.monotonic()
    yield
    logger.info("certificate: %s, %.0f s", name, time.monotonic() - started)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No warnings about options that assisted generation itself passes on, once for each continuation."""
    log = transformers.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
