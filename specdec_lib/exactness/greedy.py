"""The algorithm against the numerics: greedy output must equal the baseline's, except where rounding decides.

A pass over gamma + 1 tokens multiplies matrices of other shapes than a pass over one, so it rounds differently. In
float32 that is far too little to matter. In bfloat16 two logits that nearly tie may change places, and greedy
speculation then takes the other one. Such a divergence is explained if the gap of the two best logits, with one token
a pass, is no larger than the rounding bound, and is a failure otherwise.

The bound. A token is overtaken only if the lead over another changes by more than it amounts to. How far leads change
is measured: every position of the baseline's text is read again, into a new cache, with one and with gamma + 1 tokens
a pass, and the bound is the largest change of the best token's lead over any of the next `RIVALS`. It is never below
one unit in the last place of the best logit, which is what rounding two logits alone may do. The replays share nothing
with the decoding that diverged, so a bug there does not widen the bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from specdec_lib.config import PREFILL_CHUNK, SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.verification import Verify
from specdec_lib.models.runner import LanguageModel

GREEDY = SamplingConfig(temperature=0)
RIVALS = 8  # tokens behind the best one whose distance to it is watched


def greedy_agreement(
    target: LanguageModel,
    proposers: Mapping[str, Proposer],
    prompts: Sequence[torch.Tensor],
    *,
    num_draft_tokens: Sequence[int],
    max_new_tokens: int,
    verification: str | Verify = "token",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare greedy speculative output with the greedy baseline, row by row of one ragged batch.

    Returns:
        a line per method and gamma: dtype, rows, equal_rows, acceptance_rate (both branches ran), rounding_bound (in
        logits), decided (the share of positions whose lead is larger); and a line per row that differs: method,
        num_draft_tokens, row, position of the first difference, baseline_token, speculative_token, gap (the lead of
        the baseline's token, with one token a pass), rounding_bound, explained.
    """
    given: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": GREEDY}
    expected = autoregressive_decode(target, prompts, **given).tokens
    alone, *replays = replay(target, prompts, expected, [1, *(gamma + 1 for gamma in num_draft_tokens)])
    lines, divergences = [], []
    for gamma, together in zip(num_draft_tokens, replays, strict=True):
        bound = rounding_bound(alone, together, target.dtype)
        for method, proposer in proposers.items():
            options = given | {"num_draft_tokens": gamma, "verification": verification}
            result = speculative_decode(target, proposer, prompts, **options)
            where: dict[str, object] = {"method": method, "num_draft_tokens": gamma}
            found = [
                where | {"row": row} | _divergence(one, other, alone[row], bound)
                for row, (one, other) in enumerate(zip(expected, result.tokens, strict=True))
                if not torch.equal(one, other)
            ]
            divergences += found
            lines.append(
                where
                | {"dtype": target.precision, "rows": len(prompts)}
                | {"equal_rows": len(prompts) - len(found), "acceptance_rate": result.acceptance_rate}
                | {"rounding_bound": bound, "decided": _decided(alone, bound)}
            )
    return pd.DataFrame(lines), pd.DataFrame(divergences)


@torch.inference_mode()
def replay(
    target: LanguageModel,
    prompts: Sequence[torch.Tensor],
    continuations: Sequence[torch.Tensor],  # n tokens each
    widths: Sequence[int],
) -> list[torch.Tensor]:  # [B, n, V] float32 each
    """Logits at every position of the continuations, read after the prompts by passes of each width in turn."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=target.device)
    padded = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True).to(target.device)
    new = torch.stack(list(continuations)).to(target.device)
    read = torch.cat([padded.gather(1, lengths[:, None] - 1), new[:, :-1]], dim=1)  # [B, n]
    cache = target.new_cache(len(prompts), padded.shape[1] + read.shape[1] + max(widths))
    for part in padded[:, :-1].split(PREFILL_CHUNK, dim=1) if padded.shape[1] > 1 else ():
        target.forward(part, cache)
        cache.commit((lengths - 1 - cache.max_length).clamp(0, part.shape[1]), at_most=part.shape[1])
    replays = []
    for width in widths:
        cache.set_lengths(lengths - 1, padded.shape[1] - 1)
        logits = []
        for part in read.split(width, dim=1):
            kept = part.shape[1]
            part = torch.nn.functional.pad(part, (0, width - kept))  # the last pass is as wide as the others
            logits.append(target.logits(target.forward(part, cache).hidden)[:, :kept].float())
            cache.commit(kept, at_most=kept)
        replays.append(torch.cat(logits, dim=1))
    return replays


def rounding_bound(alone: torch.Tensor, together: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest lead, in logits, that rounding may undo; see above. `[B, n, V]` each."""
    best = alone.topk(min(1 + RIVALS, alone.shape[-1]), dim=-1)
    again = together.gather(2, best.indices)
    change = (best.values[..., :1] - best.values) - (again[..., :1] - again)
    unit = torch.finfo(dtype).eps * best.values[..., 0].abs().max()
    return float(torch.maximum(change.abs().max(), unit))


def _decided(alone: torch.Tensor, bound: float) -> float:
    """The share of positions at which a divergence would be a failure."""
    best = alone.topk(2, dim=-1).values
    return float((best[..., 0] - best[..., 1] > bound).double().mean())


def _divergence(
    baseline: torch.Tensor,  # [n]
    speculative: torch.Tensor,  # [n]
    alone: torch.Tensor,  # [n, V]
    bound: float,
) -> dict[str, object]:
    position = int((baseline != speculative).nonzero()[0, 0])
    ours, theirs = int(speculative[position]), int(baseline[position])
    gap = float(alone[position].max() - alone[position, ours])
    return {
        "position": position,
        "baseline_token": theirs,
        "speculative_token": ours,
        "gap": gap,
        "rounding_bound": bound,
        "explained": gap <= bound,
    }
