"""The battery that must reject every mutant, and must not reject the sound sampler. Four levels look at each:

yield        with the draft equal to the target, every pass must emit gamma + 1 tokens
greedy       at temperature 0 the tokens must be the baseline's
enumeration  the exact law of the output must be the target's, with nothing unexplained
joint law    samples must follow the target's law (`exactness_law`)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.exactness.enumeration import Law, enumerate_output, tolerance
from specdec_lib.exactness.joint_law import count_outcomes, joint_test, pairs_at, target_law
from specdec_lib.exactness.mutants import SOUND, Sut, systems
from specdec_lib.exactness.subjects import engine_sampler
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.toy import ToyModel

GAMMA = 2
LENGTH = GAMMA + 2  # leaves the first step room for all of its draft
SAMPLING = SamplingConfig(temperature=0.7, top_k=2)
PROMPTS = [torch.tensor([1]), torch.tensor([2, 0]), torch.tensor([0, 1, 2, 1])]
LEVEL = 1e-9  # of the joint-law test of one mutant at one position and sample size
FIRST_LOOK = 1000  # samples of each prompt; then four times as many, and so on


def mutant_table(max_samples: int, seed: int) -> pd.DataFrame:
    """Put every mutant and the sound sampler before all levels.

    Args:
        max_samples: of each prompt, at which the joint-law test gives up.

    Returns:
        a line each: mutant, unexplained (share of the volume), bias (total variation, enumerated; null where something
        is unexplained), and for each level whether it
        rejects: by_yield, by_greedy, by_enumeration, by_joint_law; joint_law_samples that the last needed or tried,
        over all prompts; rejected.
    """
    exact, quick = [_toy_systems(dtype) for dtype in (torch.float64, torch.float32)]
    same = systems(*[_toys(torch.float32)[0]] * 2)
    laws = [target_law(exact[SOUND].target, prompt, SAMPLING, LENGTH) for prompt in PROMPTS]
    lines = []
    for name, system in exact.items():
        found = enumerate_output(
            system.target,
            system.proposer,
            PROMPTS,
            max_new_tokens=LENGTH,
            num_draft_tokens=GAMMA,
            sampling=SAMPLING,
            verification=system.verification,
        )
        caught, samples = _first_rejection(quick[name], laws, max_samples, seed)
        levels = {
            "by_yield": not _yields_all(same[name]),
            "by_greedy": not _greedy_equal(quick[name]),
            "by_enumeration": found.error(laws) > tolerance(torch.float64) or found.unexplained > 0,
            "by_joint_law": caught,
        }
        lines.append(
            {"mutant": name, "unexplained": found.unexplained}
            | {"bias": np.nan if found.unexplained else found.total_variation(laws)}
            | levels
            | {"joint_law_samples": samples, "rejected": any(levels.values())}
        )
    return pd.DataFrame(lines)


def _toys(dtype: torch.dtype) -> tuple[LanguageModel, LanguageModel]:
    """A target and a draft of three tokens, as random as language and far enough apart that both branches run."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64) * 2
    noise = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    models = [
        LanguageModel(ToyModel((table + extra).to(dtype)), name) for extra, name in ((0, "toy"), (noise, "draft"))
    ]
    return models[0], models[1]


def _toy_systems(dtype: torch.dtype) -> dict[str, Sut]:
    return systems(*_toys(dtype))


def _first_rejection(system: Sut, laws: Sequence[Law], max_samples: int, seed: int) -> tuple[bool, int]:
    """Whether the joint-law test rejects, and with how many samples over all prompts: at first few, then more."""
    samples, look = min(FIRST_LOOK, max_samples), 0
    while True:
        sample = engine_sampler(
            system.target,
            system.proposer,
            num_draft_tokens=GAMMA,
            sampling=SAMPLING,
            length=LENGTH,
            batch_size=min(samples, 8192) * len(PROMPTS),
            verification=system.verification,
        )
        drawn = sample(PROMPTS, samples, seed + look)
        counts = [count_outcomes(tokens.tolist(), law) for tokens, law in zip(drawn, laws, strict=True)]
        for position in range(LENGTH - 1):
            test = joint_test([pairs_at(c, position) for c in counts], [pairs_at(law, position) for law in laws])
            if test.p_value < LEVEL:
                return True, test.samples
        if samples == max_samples:
            return False, samples * len(PROMPTS)
        samples, look = min(samples * 4, max_samples), look + 1


def _yields_all(system: Sut) -> bool:
    """Whether two passes with a perfect draft emit 2 (gamma + 1) tokens in every row behind the prefill's token."""
    result = speculative_decode(
        system.target,
        system.proposer,
        PROMPTS,
        max_new_tokens=1 + 2 * (GAMMA + 1),
        num_draft_tokens=GAMMA,
        sampling=SamplingConfig(),
        generator=torch.Generator().manual_seed(0),
        verification=system.verification,
    )
    return result.steps == 2 * len(PROMPTS)


def _greedy_equal(system: Sut) -> bool:
    """Whether 24 greedy tokens behind each prompt are the sound baseline's."""
    greedy, generator = SamplingConfig(temperature=0), torch.Generator()
    baseline = LanguageModel(system.target.model, system.target.name)
    expected = autoregressive_decode(baseline, PROMPTS, max_new_tokens=24, sampling=greedy, generator=generator).tokens
    got = speculative_decode(
        system.target,
        system.proposer,
        PROMPTS,
        max_new_tokens=24,
        num_draft_tokens=GAMMA,
        sampling=greedy,
        generator=generator,
        verification=system.verification,
    ).tokens
    return all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))
