"""The certificate: what was tried to tell the output distribution from the target's, and what that could have shown.

enumeration   the exact law of toys, by running the decoding code on every path      exactness_enumeration
              the same of a tiny Llama, on each engine that this machine has          exactness_paths
joint law     samples of toys and of the study's pair against the target's law       exactness_law
mutants       samplers with one bug each, every one of which must be rejected         exactness_mutants
numerics      greedy output against the baseline's, in float32 and bfloat16           exactness_numerics
subjects      other people's samplers, reported whatever comes out                    exactness_subjects
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import transformers

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.decoding.proposers import make_proposer
from specdec_lib.exactness.adversaries import enumeration_table
from specdec_lib.exactness.engines import ENGINES, path_table
from specdec_lib.exactness.greedy import greedy_agreement
from specdec_lib.exactness.joint_law import FALSE_ALARM, GROUPS, POWER, decide, put_to_test
from specdec_lib.exactness.mutant_battery import mutant_table
from specdec_lib.exactness.mutants import SOUND
from specdec_lib.exactness.subjects import engine_sampler, transformers_subjects
from specdec_lib.machine.engine_facts import path_of
from specdec_lib.machine.environment import describe_environment, now
from specdec_lib.methods import label
from specdec_lib.models.pair import TOY, Pair, load_pair, load_study_pair
from specdec_lib.models.runner import PREFILL_CHUNK
from specdec_lib.study.prompts import encode_prompts, load_prompts, random_prompts

FILE = "exactness.json"
PROMPTS = ("Monday, Tuesday, Wednesday,", "yes, no, yes, no, yes,")  # few tokens may follow, and lookup finds drafts
GAMMA = 2  # draft tokens per step in the sampling tests
WIDTH = 4  # tokens that a law follows at each position; the others are told apart by their group
FILTERS = (SamplingConfig(), SamplingConfig(temperature=0.7, top_k=4), SamplingConfig(temperature=1.3, top_p=0.8))
LONG_PROMPT = PREFILL_CHUNK + 88
FEWER = 4  # the pair's settings but the first take that part of the samples, unless thorough
OTHERS = 12  # other people's samplers, one continuation at a time, take that part
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Effort:
    """How many continuations of each prompt the levels take that do not run the study's pair."""

    toy: int
    mutants: int
    tiny: int
    pair: int  # times the study's correctness_samples
    engines: tuple[str, ...] = ENGINES  # on which a tiny Llama is enumerated, where this machine has them
    thorough: bool = False


QUICK = Effort(toy=4000, mutants=1000, tiny=200, pair=1, engines=ENGINES[:2])  # for the toy pair: a smoke test
STANDARD = Effort(toy=20_000, mutants=16_000, tiny=800, pair=1)
THOROUGH = Effort(toy=400_000, mutants=1_000_000, tiny=40_000, pair=10, thorough=True)


@dataclass(frozen=True)
class Certificate:
    """The tables of all levels; `failures` says what is wrong.

    Attributes:
        enumeration: see `enumeration_table` and `path_table`.
        tests: a line per setting and position, see `exactness_law.decide`, with what was tested.
        cells: a line per setting, position, prompt and pair of tokens: observed and expected counts.
        mutants: see `mutant_table`.
        greedy, divergences: see `greedy_agreement`, in float32 and in the study's dtype.
        subjects: like `tests`, for other people's samplers; no gate.
    """

    enumeration: pd.DataFrame
    tests: pd.DataFrame
    cells: pd.DataFrame
    mutants: pd.DataFrame
    greedy: pd.DataFrame
    divergences: pd.DataFrame
    subjects: pd.DataFrame

    def failures(self) -> list[str]:
        """One line for everything that an exact implementation would not do; empty if there is nothing."""
        wrong = self.enumeration[
            (self.enumeration["largest_error"] > self.enumeration["tolerance"]) | (self.enumeration["unexplained"] > 0)
        ]
        lines = [f"enumeration: {e.pair} ({e.path}), gamma {e.num_draft_tokens} is off" for e in wrong.itertuples()]
        biased = self.tests[self.tests["rejected"]]
        lines += [f"joint law: {line.sampler} at position {line.position} is biased" for line in biased.itertuples()]
        unexpected = self.mutants[self.mutants["rejected"] == (self.mutants["mutant"] == SOUND)]
        lines += [f"mutants: wrong verdict on {name}" for name in unexpected["mutant"]]
        exact = self.greedy[(self.greedy["dtype"] == "float32") & (self.greedy["equal_rows"] < self.greedy["rows"])]
        lines += [
            f"greedy: {line.method}, gamma {line.num_draft_tokens} differs in float32" for line in exact.itertuples()
        ]
        unexplained = self.divergences[~self.divergences["explained"]] if len(self.divergences) else self.divergences
        lines += [
            f"greedy: {line.method}, gamma {line.num_draft_tokens}, row {line.row} differs by more than rounding"
            for line in unexplained.itertuples()
        ]
        return lines

    def sentence(self) -> str:
        """What was shown, in one sentence per pair: the least powerful position of each pair's first setting.

        The bias is one of the law that was tested, not of whole texts: see `exactness_law`.
        """
        parts = []
        for sampler in dict.fromkeys(self.tests.groupby("pair", sort=False)["sampler"].first()):
            lines = self.tests[self.tests["sampler"] == sampler]
            first = lines.iloc[0]
            found = "one was" if lines["rejected"].any() else "none was"
            parts.append(
                f"{first['pair']}, {label(first['method'])}, at temperature {first['temperature']:g}, "
                f"top-p {first['top_p']:g}, gamma {first['num_draft_tokens']}, batch {first['batch_size']}: a "
                f"total-variation bias in the law of pairs over the {WIDTH} most likely tokens and {GROUPS} groups of "
                f"the others above {lines['detectable_bias'].max():.2g} would have been detected with probability "
                f"{POWER:g}; {found}. Up to {lines['pooled'].max():.0%} of the mass was seen only in sums."
            )
        return " ".join([*reversed(parts), self.scope()])

    def paths(self) -> dict[str, list[str]]:
        """By what was done: the ways through the engine that were certified (see `path_of`)."""
        tables = {"enumerated": self.enumeration, "sampled": self.tests, "greedy": self.greedy}
        return {what: list(table["path"].unique()) for what, table in tables.items()}

    def scope(self) -> str:
        """The ways through the engine that the certificate is about, in one sentence."""
        ways = [f"{what} through {' and '.join(f'({path})' for path in paths)}" for what, paths in self.paths().items()]
        return f"Certified are texts {'; '.join(ways)}."

    def record(self, study: StudyParams) -> dict[str, object]:
        """JSON-ready, without the counts of single pairs of tokens."""
        tables = {name: table for name, table in vars(self).items() if name != "cells"}
        return {
            "sentence": self.sentence(),
            "passed": not self.failures(),
            "failures": self.failures(),
            "paths": self.paths(),
            "false_alarm": FALSE_ALARM,
            "power": POWER,
            "written": now(),
            **{name: json.loads(table.to_json(orient="records")) for name, table in tables.items()},
            "environment": describe_environment(study),
        }


def certify(study: StudyParams, folder: Path | str, thorough: bool = False) -> Certificate:
    """Run all levels for a study, write `folder/exactness.json` and return the certificate.

    Args:
        thorough: ten times the samples of the pair, and more of everything else.
    """
    effort = THOROUGH if thorough else QUICK if study.pair == TOY else STANDARD
    with _quiet_transformers():
        _say("enumerating every path of toys")
        enumeration = pd.concat(
            [enumeration_table(effort.thorough), path_table(study.device, effort.thorough, effort.engines)],
            ignore_index=True,
        )
        _say("putting mutants to the test")
        mutants = mutant_table(effort.mutants, study.seed)
        pair = load_study_pair(study, dtype="float32")
        rounding = load_study_pair(study) if study.dtype != "float32" else pair
        _say("sampling")
        tests, cells = _joint_law_tests(study, pair, rounding, effort)
        _say("greedy")
        greedy, divergences = _greedy(study, pair, effort.thorough)
        if rounding is not pair:
            rounded = _greedy(study, rounding, effort.thorough)
            greedy, divergences = pd.concat([greedy, rounded[0]]), pd.concat([divergences, rounded[1]])
        _say("transformers' assisted generation")
        subjects = _subjects(study, pair, effort)
    certificate = Certificate(enumeration, tests, cells, mutants, greedy, divergences, subjects)
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(certificate.record(study), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return certificate


def read_certificate(folder: Path) -> dict[str, object] | None:
    """What `certify` wrote into `folder`; None where there is nothing."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _joint_law_tests(
    study: StudyParams, pair: Pair, rounding: Pair, effort: Effort
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gate: the toy pair with all filters and methods, then the study's pair.

    A law is only exact where a token's logits do not depend on what is computed beside it: in float32 as good as, and
    through the kernels exactly, whatever they round to. So the kernels take the tests of the pair where they can, with
    one in float32 beside them.
    """
    toy = load_pair(TOY, device=study.device)
    runs = [(toy, method, GAMMA, sampling, effort.toy) for method in ("draft", "ngram") for sampling in FILTERS]
    runs.append((toy, "draft", 4, SamplingConfig(), effort.toy))
    if pair.name != TOY:
        samples = study.correctness_samples * effort.pair
        fewer = samples if effort.thorough else -(-samples // FEWER)
        first, *others = study.methods
        engine = pair if rounding.target.fused is None else rounding
        runs += [(engine, first, GAMMA, FILTERS[0], samples)]
        runs += [(engine, first, GAMMA, sampling, fewer) for sampling in FILTERS[1 : 3 if effort.thorough else 2]]
        runs += [(engine, method, GAMMA, FILTERS[0], fewer) for method in others]
        runs += [(pair, first, GAMMA, FILTERS[0], fewer)] if engine is not pair else []
    tests, cells = [], []
    for seed, (subject, method, gamma, sampling, samples) in enumerate(runs, start=study.seed):
        prompts = short_prompts(subject, study)
        batch_size = min(max(2**22 // subject.target.vocab_size, 96), 4096) // len(prompts) * len(prompts)
        length = gamma + 2  # leaves the first step room for all of its draft
        sampler = engine_sampler(
            subject.target,
            make_proposer(method, subject),
            num_draft_tokens=gamma,
            sampling=sampling,
            length=length,
            batch_size=batch_size,
        )
        each, counted = put_to_test(
            sampler,
            subject.target,
            prompts,
            sampling=sampling,
            length=length,
            samples=samples,
            seed=seed,
            width=WIDTH,
        )
        path = path_of(subject.target)
        where = {"pair": f"{subject.name} ({path})", "path": path, "method": method, "num_draft_tokens": gamma}
        name = f"{where['pair']}, {label(method)}, gamma {gamma}, {sampling_name(sampling)}"
        tests.append(each.assign(sampler=name, batch_size=batch_size, **where, **vars(sampling)))
        cells.append(counted.assign(sampler=name))
    return decide(pd.concat(tests, ignore_index=True)), pd.concat(cells, ignore_index=True)


def _subjects(study: StudyParams, pair: Pair, effort: Effort) -> pd.DataFrame:
    """Other people's samplers: on tiny Llamas, where many samples are cheap, and on the study's own pair."""
    length, tests = GAMMA + 2, []
    tiny = load_pair(TOY)
    runs = [(tiny, effort.tiny)]
    if pair.name != TOY:
        runs.append((pair, -(-study.correctness_samples * effort.pair // OTHERS)))
    for seed, (of, samples) in enumerate(runs, start=study.seed):
        prompts = short_prompts(of, study)[:1] if of is pair else [torch.tensor([1]), torch.tensor([5, 2])]
        for name, (target, sampling, sample) in transformers_subjects(of, GAMMA, length, WIDTH).items():
            each, _ = put_to_test(
                sample, target, prompts, sampling=sampling, length=length, samples=samples, seed=seed, width=WIDTH
            )
            tests.append(each.assign(sampler=name, **vars(sampling)))
    return decide(pd.concat(tests, ignore_index=True))


def _greedy(study: StudyParams, pair: Pair, long: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    proposers = {str(method): make_proposer(method, pair) for method in study.methods}
    greedy, divergences = greedy_agreement(
        pair.target, proposers, greedy_prompts(pair, study, long), num_draft_tokens=(1, 4, 8), max_new_tokens=32
    )
    return greedy.assign(path=path_of(pair.target)), divergences


def greedy_prompts(pair: Pair, study: StudyParams, long: bool) -> list[torch.Tensor]:
    """Four natural prompts, one of them longer than a prefill pass if `long`: 1-D int64 tensors."""
    if pair.tokenizer is None:
        return random_prompts(pair.target.vocab_size, 4, 0, torch.Generator().manual_seed(study.seed))
    prompts, length = load_prompts(study.prompt_set)[:4], LONG_PROMPT if long else 0
    return encode_prompts(prompts[:3], pair.tokenizer, 0) + encode_prompts(prompts[3:], pair.tokenizer, length)


def short_prompts(pair: Pair, study: StudyParams) -> list[torch.Tensor]:
    """Two short prompts of different lengths, so that a test spends its time on decoding: 1-D int64 tensors.

    A law that follows few tokens sees most behind a text that leaves little choice.
    """
    if pair.tokenizer is None:
        return random_prompts(pair.target.vocab_size, 2, 0, torch.Generator().manual_seed(study.seed))
    return [torch.tensor(pair.tokenizer.encode(text, add_special_tokens=False)) for text in PROMPTS]


def sampling_name(sampling: SamplingConfig) -> str:
    """How a filter setting is named in tables."""
    filters = [f"top-k {sampling.top_k}"] * (sampling.top_k > 0) + [f"top-p {sampling.top_p:g}"] * (sampling.top_p < 1)
    return ", ".join([f"T = {sampling.temperature:g}", *filters])


def _say(what: str) -> None:
    logger.info("exactness: %s", what)


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
