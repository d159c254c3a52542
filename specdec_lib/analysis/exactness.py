"""Is the output distribution the target's? Laws computed without sampling, compared with what decoding emits.

Two checks. Greedy speculative output must equal the greedy baseline token for token (in float32, where verifying
several tokens at once rounds to the same argmax). Sampled output must follow the target's joint law of successive
tokens: the law is enumerated exactly, the sampler is run many times on a ragged batch, and a G-test compares the two.
A sampler that is known to be wrong goes through the same test, to show that the test can fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import Proposer, make_proposer
from specdec_lib.decoding.sampling import draw, probabilities
from specdec_lib.decoding.speculative import Verifier, speculative_decode
from specdec_lib.decoding.verification import Verification, count_accepted
from specdec_lib.measure.prompts import encode_prompts, load_prompts, random_prompts
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import PREFILL_CHUNK, LanguageModel

Law = dict[tuple[int, ...], float]  # a sequence of tokens to its probability
REJECT_BELOW = 1e-6  # the chance that a sound sampler fails one test
BATCH_ROWS = 96  # of a real vocabulary; toys take more
GAMMA = 2  # draft tokens per step in the sampling tests
TOY_SAMPLES = 4000  # continuations of each prompt; toys are quick, and their law has many outcomes
LONG_PROMPT = PREFILL_CHUNK + 88
WRONG = "wrong on purpose"
TOP_K = 4  # of the sampling tests on a real vocabulary: keeps its law enumerable
LEAST_EXPECTED = 5.0  # sequences expected less often than this are pooled


@dataclass(frozen=True)
class GTest:
    """A G-test of observed counts against a law: statistic, degrees of freedom and p-value."""

    statistic: float
    degrees_of_freedom: int
    p_value: float


def target_law(target: LanguageModel, prompt: torch.Tensor, sampling: SamplingConfig, num_tokens: int) -> Law:
    """The exact law of the next `num_tokens` tokens, by running every continuation that `sampling` leaves possible.

    The cost grows as (possible tokens) ** (num_tokens - 1): use a toy, or top_k.
    """
    law: Law = {(): 1.0}
    for _ in range(num_tokens):
        prefixes = [torch.cat([prompt, torch.tensor(prefix, dtype=torch.int64)]) for prefix in law]
        rows = _next_token_probs(target, torch.stack(prefixes), sampling)
        law = {
            (*prefix, token): mass * float(row[token])
            for (prefix, mass), row in zip(law.items(), rows, strict=True)
            for token in row.nonzero()[:, 0].tolist()
        }
    return law


@torch.inference_mode()
def _next_token_probs(target: LanguageModel, texts: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    rows = []
    for part in texts.split(BATCH_ROWS):
        step = target.forward(part.to(target.device), target.new_cache(*part.shape))
        rows.append(probabilities(target.logits(step.hidden[:, -1]), sampling).double().cpu())
    return torch.cat(rows)


def g_test(counts: Mapping[tuple[int, ...], float], law: Law) -> GTest:
    """Likelihood-ratio test of `counts` against `law`; rare sequences are pooled, impossible ones fail at once."""
    total = sum(counts.values())
    if any(sequence not in law for sequence in counts):
        return GTest(float("inf"), len(law) - 1, 0.0)
    observed, expected, rare = [], [], [0.0, 0.0]
    for sequence, mass in law.items():
        if mass * total < LEAST_EXPECTED:
            rare = [rare[0] + counts.get(sequence, 0), rare[1] + mass * total]
        else:
            observed.append(float(counts.get(sequence, 0)))
            expected.append(mass * total)
    if rare[1] > 0:
        observed.append(rare[0])
        expected.append(rare[1])
    if len(observed) < 2:
        return GTest(0.0, 0, 1.0)  # one outcome only: nothing to test
    expected_array = np.array(expected) * (sum(observed) / sum(expected))
    statistic, p_value = stats.power_divergence(observed, expected_array, lambda_="log-likelihood")
    return GTest(float(statistic), len(observed) - 1, float(p_value))


def without_residual(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_tokens: torch.Tensor, generator: torch.Generator
) -> Verification:
    """A wrong sampler that has been shipped: after a rejection it draws from the target instead of the residual."""
    uniforms = torch.rand(draft_tokens.shape, generator=generator, device=target_probs.device)
    num_accepted = count_accepted(target_probs, draft_probs, draft_tokens, uniforms)
    row = torch.arange(len(num_accepted), device=num_accepted.device)
    return Verification(num_accepted, draw(target_probs[row, num_accepted], generator))


def sampling_test(
    target: LanguageModel,
    proposer: Proposer,
    prompts: Sequence[torch.Tensor],
    *,
    num_draft_tokens: int,
    sampling: SamplingConfig,
    num_samples: int,
    seed: int,
    verification: str | Verifier = "token",
) -> pd.DataFrame:
    """Test the joint law of each two successive tokens of a first full step, for each prompt of a ragged batch.

    The first token comes out of the prefill; behind it the step emits up to gamma + 1, so that the pairs at positions 1
    to gamma see accepted, resampled and bonus tokens. Returns a line per prompt, position and pair of tokens: observed
    and expected count, and the statistic, degrees_of_freedom and p_value of the prompt and position.
    """
    generator = torch.Generator(target.device).manual_seed(seed)
    rows = list(prompts) * (min(max(2**21 // target.vocab_size, BATCH_ROWS), 1024) // len(prompts))
    length = num_draft_tokens + 2  # leaves the first step room for all of its draft
    counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in prompts]  # of whole sequences
    while min(c.total() for c in counts) < num_samples:
        result = speculative_decode(
            target,
            proposer,
            rows,
            max_new_tokens=length,
            num_draft_tokens=num_draft_tokens,
            sampling=sampling,
            generator=generator,
            verification=verification,
        )
        for row, tokens in enumerate(result.tokens):
            counts[row % len(prompts)][tuple(tokens.tolist())] += 1
    lines = []
    for prompt, (ids, seen) in enumerate(zip(prompts, counts, strict=True)):
        law = target_law(target, ids, sampling, length)
        for position in range(1, num_draft_tokens + 1):
            lines += _compare(_pairs(seen, position), _pairs(law, position), {"prompt": prompt, "position": position})
    return pd.DataFrame(lines)


def _compare(seen: dict[tuple[int, ...], float], law: Law, where: dict[str, int]) -> list[dict[str, object]]:
    """A line per pair of tokens, with the G-test of all of them."""
    total = sum(seen.values())
    test = asdict(g_test(seen, law))
    return [
        where | {"tokens": pair, "observed": int(seen.get(pair, 0)), "expected": law.get(pair, 0.0) * total} | test
        for pair in sorted(law.keys() | seen.keys())
    ]


def _pairs(weights: Mapping[tuple[int, ...], float], position: int) -> Law:
    """Laws or counts of whole sequences, summed to those of the pair that begins at `position`."""
    summed: Law = {}
    for sequence, weight in weights.items():
        pair = sequence[position : position + 2]
        summed[pair] = summed.get(pair, 0.0) + weight
    return summed


def greedy_prompts(pair: Pair, study: StudyParams) -> list[torch.Tensor]:
    """Two natural prompts and one longer than a prefill pass, where the context allows it: 1-D int64 tensors."""
    if pair.tokenizer is None:
        return random_prompts(pair.target.vocab_size, 3, 0, torch.Generator().manual_seed(study.seed))
    prompts = load_prompts(study.prompt_set)
    return [*encode_prompts(prompts[:2], pair.tokenizer, 0), *encode_prompts(prompts[2:3], pair.tokenizer, LONG_PROMPT)]


def short_prompts(pair: Pair, study: StudyParams) -> list[torch.Tensor]:
    """Three short prompts of different lengths, so that a test spends its time on decoding: 1-D int64 tensors."""
    if pair.tokenizer is None:
        generator = torch.Generator().manual_seed(study.seed)
        return random_prompts(pair.target.vocab_size, 3, 0, generator)
    whole = encode_prompts(load_prompts(study.prompt_set)[:3], pair.tokenizer, 0)
    return [ids[-length:] for ids, length in zip(whole, (6, 8, 7), strict=True)]


def sampling_tests(pair: Pair, study: StudyParams, methods: Sequence[str]) -> dict[str, pd.DataFrame]:
    """`sampling_test` of a pair with each of these methods, keyed by what was tested."""
    return {f"{pair.name}: {method}": _study_test(pair, study, method, "token") for method in methods}


def wrong_sampling_test(pair: Pair, study: StudyParams) -> dict[str, pd.DataFrame]:
    """The same test of the sampler without a residual, which it must reject."""
    return {f"{pair.name}: draft, no residual ({WRONG})": _study_test(pair, study, "draft", without_residual)}


def _study_test(pair: Pair, study: StudyParams, method: str, verification: str | Verifier) -> pd.DataFrame:
    return sampling_test(
        pair.target,
        make_proposer(method, pair),
        short_prompts(pair, study),
        num_draft_tokens=GAMMA,
        sampling=SamplingConfig(temperature=1.0, top_k=0 if pair.tokenizer is None else TOP_K),
        num_samples=TOY_SAMPLES if pair.tokenizer is None else study.correctness_samples,
        seed=study.seed,
        verification=verification,
    )


def verdicts(tests: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One line per sampler: its tests and samples, its p-value, and whether it passed.

    The prompts are independent, so that their p-values combine (Fisher); positions share their samples (Bonferroni).
    """
    lines = []
    for name, table in tests.items():
        each = table.groupby(["position", "prompt"]).agg(p_value=("p_value", "first"), samples=("observed", "sum"))
        by_position = each.groupby("position")["p_value"].agg(_combined)
        p_value = min(float(by_position.min()) * len(by_position), 1.0)
        lines.append(
            {"sampler": name, "wrong_on_purpose": WRONG in name, "tests": len(each)}
            | {"samples": int(each["samples"].min()), "p_value": p_value, "follows_target": p_value >= REJECT_BELOW}
        )
    return pd.DataFrame(lines)


def _combined(p_values: pd.Series) -> float:
    """Fisher's combination; a p-value that underflowed counts as the smallest positive number."""
    return float(stats.combine_pvalues(p_values.clip(lower=np.finfo(np.float64).tiny)).pvalue)


def greedy_agreement(
    target: LanguageModel,
    proposers: dict[str, Proposer],
    prompts: Sequence[torch.Tensor],
    *,
    num_draft_tokens: Sequence[int],
    max_new_tokens: int,
) -> pd.DataFrame:
    """Compare greedy speculative output with the greedy baseline, row by row of one ragged batch.

    Returns a line per method and gamma: rows, equal_rows, first_difference (position, null if there is none), and the
    acceptance_rate, which shows that both branches ran.
    """
    greedy, generator = SamplingConfig(temperature=0), torch.Generator(target.device)
    expected = autoregressive_decode(
        target, prompts, max_new_tokens=max_new_tokens, sampling=greedy, generator=generator
    ).tokens
    lines = []
    for method, proposer in proposers.items():
        for gamma in num_draft_tokens:
            result = speculative_decode(
                target,
                proposer,
                prompts,
                max_new_tokens=max_new_tokens,
                num_draft_tokens=gamma,
                sampling=greedy,
                generator=generator,
            )
            differ = [(a != b).nonzero()[:, 0] for a, b in zip(expected, result.tokens, strict=True)]
            first = [int(d[0]) for d in differ if len(d)]
            lines.append(
                {"method": method, "num_draft_tokens": gamma, "rows": len(prompts)}
                | {"equal_rows": len(prompts) - len(first), "first_difference": min(first) if first else None}
                | {"acceptance_rate": result.acceptance_rate}
            )
    return pd.DataFrame(lines).astype({"first_difference": "Int64"})


def finding_greedy(agreement: pd.DataFrame) -> str:
    """One sentence on a table of `greedy_agreement`."""
    equal, rows = agreement["equal_rows"].sum(), agreement["rows"].sum()
    return f"{equal} of {rows} greedy outputs equal the baseline's token for token."


def finding_sampled(table: pd.DataFrame) -> str:
    """One sentence on a table of `verdicts`."""
    sound, wrong = table[~table["wrong_on_purpose"]], table[table["wrong_on_purpose"]]
    return (
        f"{sound['follows_target'].sum()} of {len(sound)} sound samplers follow the target's joint law "
        f"(smallest p-value {sound['p_value'].min():.2g}); {(~wrong['follows_target']).sum()} of {len(wrong)} samplers "
        f"that are wrong on purpose are rejected (largest p-value {wrong['p_value'].max():.2g})."
    )


def check_verdicts(table: pd.DataFrame) -> None:
    """Raise AssertionError unless every sound sampler passed and every wrong one was rejected."""
    unexpected = table[table["follows_target"] == table["wrong_on_purpose"]]
    assert unexpected.empty, f"unexpected verdict for {', '.join(unexpected['sampler'])}"
