"""What a draft is worth: the chance that its drafted tokens are accepted, position by position, on held-out text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdec_lib.distill.data import Batch
from specdec_lib.distill.students import HeadStudent, PlainStudent
from specdec_lib.distill.train import CHUNK


@dataclass(frozen=True)
class Acceptance:
    """Probabilities for drafted positions 1 ... gamma; what the target gives to unscored tokens counts as rejected."""

    sampled: list[float]  # temperature 1: accepted, given that all before were accepted
    greedy: list[float]  # temperature 0: the two arg max agree, given that they agreed before
    coverage: float  # the target's probability of the scored tokens

    @staticmethod
    def mean_length(conditional: list[float], num_draft_tokens: int) -> float:
        """Expected tokens per target pass: 1 + the sum over drafted positions of reaching and passing them."""
        reached, length = 1.0, 1.0
        for accepted in conditional[:num_draft_tokens]:
            reached *= accepted
            length += reached
        return length

    @staticmethod
    def rate(conditional: list[float], num_draft_tokens: int) -> float:
        """Accepted over tested for runs of `num_draft_tokens`."""
        reached, accepted, tested = 1.0, 0.0, 0.0
        for chance in conditional[:num_draft_tokens]:
            tested += reached
            reached *= chance
            accepted += reached
        return accepted / tested


@torch.inference_mode()
def measure(student: HeadStudent | PlainStudent, batch: Batch, gamma: int, temperature_one_rows: slice) -> Acceptance:
    """Acceptance of drafted runs that start at every answered position of `batch`.

    A run's tokens are the target's own samples x. Weighting each run by the product of min(1, draft(x) / target(x))
    turns averages over the target's samples into averages over what the procedure accepts, so the sampled figures are
    those of the real procedure; they need text sampled at temperature 1, hence `temperature_one_rows`. The greedy ones
    condition on runs that the target would have chosen greedily too.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = student.unroll(batch, gamma)[:, :, :-1].bfloat16()  # [gamma, B, T - 2, H]
    last_state = batch.last_state(hidden.shape[-1])[:, 1:-1]
    per_token = _per_token(student, hidden, last_state, batch.tokens[:, 2:])
    overlap, ratio, agree, is_top, coverage = per_token
    answer = batch.answer[:, 2:]
    rows = torch.zeros(len(answer), 1, dtype=torch.bool)
    rows[temperature_one_rows] = True
    sampled = _conditional(overlap, ratio, answer & rows)
    greedy = _conditional(agree, agree * is_top, answer)
    return Acceptance(sampled, greedy, float(coverage[answer & rows].mean()))


def _per_token(
    student: HeadStudent | PlainStudent, hidden: torch.Tensor, last_state: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per step: sum min(p, q), min(1, q(x) / p(x)), equal arg max. Per position: x is the arg max of p, coverage."""
    embeddings, ids = student.embeddings[0].bfloat16(), student.draft.scored_ids.long()
    slot = torch.full((len(embeddings),), -1).index_copy_(0, ids, torch.arange(len(ids)))
    steps, shape = len(hidden), tokens.shape
    tokens, last_state, hidden = tokens.flatten(), last_state.flatten(0, 1), hidden.flatten(1, 2)
    overlap, ratio, agree = (torch.zeros(steps, len(tokens)) for _ in range(3))
    is_top, coverage = torch.zeros(len(tokens)), torch.zeros(len(tokens))
    for chunk in torch.arange(len(tokens)).split(CHUNK):
        full = torch.softmax((last_state[chunk] @ embeddings.T).float(), dim=-1)
        x, target = tokens[chunk, None], full[:, ids]
        top = full.argmax(-1)
        is_top[chunk], coverage[chunk] = (top == x[:, 0]).float(), target.sum(-1)
        for step in range(steps):
            draft = torch.softmax((hidden[step, chunk] @ embeddings[ids].T).float(), dim=-1)
            draft_x = draft.gather(1, slot[x].clamp_min(0)) * (slot[x] >= 0)
            overlap[step, chunk] = torch.minimum(draft, target).sum(-1)
            ratio[step, chunk] = (draft_x / full.gather(1, x)).clamp_max(1)[:, 0]
            agree[step, chunk] = (ids[draft.argmax(-1)] == top).float()
    return tuple(t.unflatten(-1, shape) for t in (overlap, ratio, agree, is_top, coverage))


def _conditional(accept: torch.Tensor, carry: torch.Tensor, valid: torch.Tensor) -> list[float]:
    """Acceptance of each drafted position given the ones before.

    `accept` and `carry` `[gamma, B, T]` are the chance of acceptance and the weight with which a run goes on; `valid`
    `[B, T]` says where runs may be.
    """
    result = []
    reach = valid.float()
    for step in range(len(accept)):
        result.append(float((reach * accept[step]).sum() / reach.sum().clamp_min(1e-9)))
        ahead = torch.zeros_like(reach)
        ahead[:, 1:] = (reach * carry[step])[:, :-1]
        reach = ahead * valid
    return result
