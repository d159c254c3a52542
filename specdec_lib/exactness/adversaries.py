"""Pairs made to break a rule of acceptance, enumerated over draft lengths and filters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers import ModelProposer, NgramProposer, Proposer
from specdec_lib.exactness.enumeration import enumerate_output, tolerance
from specdec_lib.exactness.joint_law import target_law
from specdec_lib.machine.engine_facts import path_of
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.toy import ToyModel

PROMPTS = [torch.tensor([1]), torch.tensor([2, 0]), torch.tensor([0, 1, 2, 1])]  # ragged: one batch holds all
NEVER = -1e6  # a logit whose probability is exactly 0
PLAIN = SamplingConfig()
BOTH = SamplingConfig(temperature=0.7, top_k=2, top_p=0.95)
FILTERS = (PLAIN, SamplingConfig(temperature=0.7, top_k=2), SamplingConfig(temperature=1.3, top_p=0.8))


def adversarial_pairs(vocab_size: int = 3) -> dict[str, tuple[LanguageModel, Proposer]]:
    """Targets and proposers in float64, by what is nasty about them."""
    generator = torch.Generator().manual_seed(0)
    shape = (vocab_size,) * 3

    def normal(scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    def only(*tokens: int) -> torch.Tensor:
        logits = torch.full(shape, NEVER, dtype=torch.float64)
        logits[..., list(tokens)] = 0.0
        return logits

    table = normal(2.0)
    impossible = torch.rand(shape, generator=generator) < 0.3
    impossible[..., 0] = False
    one_hot = torch.nn.functional.one_hot(normal(1.0).argmax(dim=-1), vocab_size).double()
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
    pairs: dict[str, tuple[LanguageModel, Proposer]] = {
        name: (LanguageModel(ToyModel(target), "target"), ModelProposer(LanguageModel(ToyModel(draft), "draft")))
        for name, (target, draft) in tables.items()
    }
    return pairs | {"n-gram lookup": (pairs["random"][0], NgramProposer())}


def enumeration_table(thorough: bool = False) -> pd.DataFrame:
    """Enumerate every pair: gamma 1 to 4, with and without filters, until a whole draft and its bonus are emitted.

    Args:
        thorough: cross draft lengths with all filters, and gamma 4 with all prompts (minutes instead of seconds).

    Returns:
        a line each: pair, path (how it is computed), num_draft_tokens, temperature, top_k, top_p, prompts,
        new_tokens, paths, largest_error, tolerance, unexplained.
    """
    lines = []
    for name, (target, proposer) in adversarial_pairs().items():
        for gamma, sampling in _settings(thorough):
            prompts = PROMPTS if gamma < 4 or thorough else PROMPTS[:1]
            line = enumeration_line(target, proposer, prompts, gamma, sampling)
            lines.append({"pair": name} | line)
    return pd.DataFrame(lines)


def enumeration_line(
    target: LanguageModel, proposer: Proposer, prompts: Sequence[torch.Tensor], gamma: int, sampling: SamplingConfig
) -> dict[str, object]:
    """What comes of one enumeration, until a whole draft and its bonus are emitted."""
    new = gamma + 2
    found = enumerate_output(target, proposer, prompts, max_new_tokens=new, num_draft_tokens=gamma, sampling=sampling)
    error = found.error([target_law(target, prompt, sampling, new) for prompt in prompts])
    return (
        {"path": path_of(target), "num_draft_tokens": gamma}
        | vars(sampling)
        | {"prompts": len(prompts), "new_tokens": new, "paths": found.paths, "largest_error": error}
        | {"tolerance": tolerance(target.dtype), "unexplained": found.unexplained}
    )


def _settings(thorough: bool) -> Iterator[tuple[int, SamplingConfig]]:
    for gamma in (1, 2, 3):
        for sampling in FILTERS:
            if thorough or gamma == 1 or (gamma == 2 and sampling is not PLAIN) or sampling.top_k:
                yield gamma, sampling
    yield 4, FILTERS[1] if thorough else BOTH
