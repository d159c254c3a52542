"""The battery that must reject every mutant, and must not reject the sound sampler. Four levels test each:

yield        with the draft equal to the target, every pass must emit gamma + 1 tokens
greedy       at temperature 0 the tokens must be the baseline's
enumeration  the exact law of the output must be the target's, with nothing unexplained
joint law    samples must follow the target's law (`joint_law`)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.exactness.adversaries import PROMPTS, toy_pair
from specdec_lib.exactness.certificate import SOUND
from specdec_lib.exactness.enumeration import enumerate_output, tolerance
from specdec_lib.exactness.joint_law import put_to_test
from specdec_lib.exactness.mutants import SystemUnderTest, systems
from specdec_lib.exactness.subjects.in_process import engine_sampler
from specdec_lib.exactness.target_law import Law, target_law
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel

GAMMA = 2
LENGTH = GAMMA + 2  # leaves the first step room for all of its draft
GREEDY = SamplingConfig(temperature=0)
LEVEL = 1e-9  # of the joint-law test of one mutant at one position


def mutant_table(samples: int, seed: int) -> pd.DataFrame:
    """Put every mutant and the sound sampler to all levels, with so many samples of each prompt for the joint law.

    Returns:
        a line each: mutant, unexplained (share of the volume), bias (total variation, enumerated; null where something
        is unexplained), for each level whether it rejects (by_yield, by_greedy, by_enumeration, by_joint_law),
        joint_law_samples (over all prompts), rejected.
    """
    exact = systems(_toys(torch.float64))
    quick, same = systems(_toys(torch.float32)), systems(_toys(torch.float32, draft_noise=0.0))
    laws_at = {
        sampling: [target_law(exact[SOUND].target, prompt, sampling, LENGTH) for prompt in PROMPTS]
        for sampling in dict.fromkeys(system.sampling for system in exact.values())
    }
    lines = []
    for name, system in exact.items():
        laws = laws_at[system.sampling]
        options: dict[str, Any] = {
            "max_new_tokens": LENGTH,
            "num_draft_tokens": GAMMA,
            "verification": system.verification,
        }
        found = enumerate_output(system.target, system.proposer, PROMPTS, sampling=system.sampling, **options)
        levels = {
            "by_yield": not _yields_all(same[name]),
            "by_greedy": not _greedy_equal(quick[name]),
            "by_enumeration": found.error(laws) > tolerance(torch.float64) or found.unexplained > 0,
            "by_joint_law": _biased(quick[name], laws, samples, seed),
        }
        bias = np.nan if found.unexplained else found.total_variation(laws)
        lines.append(
            {"mutant": name, "unexplained": found.unexplained, "bias": bias}
            | levels
            | {"joint_law_samples": samples * len(PROMPTS), "rejected": any(levels.values())}
        )
    return pd.DataFrame(lines)


def _toys(dtype: torch.dtype, draft_noise: float = 1.0) -> Pair:
    """Three tokens, as random as language; with the noise, far enough apart that drafts are accepted and rejected."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64) * 2
    noise = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64) * draft_noise
    return toy_pair("toy", table.to(dtype), (table + noise).to(dtype))


def _biased(system: SystemUnderTest, laws: Sequence[Law], samples: int, seed: int) -> bool:
    """Whether the test of the joint law rejects at any position."""
    sample = engine_sampler(
        system.target,
        system.proposer,
        num_draft_tokens=GAMMA,
        sampling=system.sampling,
        length=LENGTH,
        batch_size=4096 * len(PROMPTS),
        verification=system.verification,
    )
    options: dict[str, Any] = {"sampling": system.sampling, "length": LENGTH, "samples": samples, "seed": seed}
    tests, _ = put_to_test(sample, system.target, PROMPTS, laws=laws, **options)
    return bool((tests["p_value"] < LEVEL).any())


def _yields_all(system: SystemUnderTest) -> bool:
    """Whether two passes with a perfect draft emit 2 (gamma + 1) tokens in every row after the prefill's token."""
    result = _decode(system, SamplingConfig(), 1 + 2 * (GAMMA + 1))
    return result.steps == 2 * len(PROMPTS)


def _greedy_equal(system: SystemUnderTest) -> bool:
    """Whether 24 greedy tokens after each prompt are the sound baseline's."""
    baseline = LanguageModel(system.target.model, system.target.name)
    expected = autoregressive_decode(baseline, PROMPTS, max_new_tokens=24, sampling=GREEDY).tokens
    got = _decode(system, GREEDY, 24).tokens
    return all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))


def _decode(system: SystemUnderTest, sampling: SamplingConfig, max_new_tokens: int) -> DecodeResult:
    return speculative_decode(
        system.target,
        system.proposer,
        PROMPTS,
        max_new_tokens=max_new_tokens,
        num_draft_tokens=GAMMA,
        sampling=sampling,
        generator=torch.Generator().manual_seed(0),
        verification=system.verification,
    )
