"""Distillation: bring a draft's distribution close to the target's, where closeness is the acceptance rate.

The chance that a drafted token is accepted is sum over tokens of min(target, draft) (Leviathan et al. 2022,
section 3.2). Its negative logarithm is what training lowers, together with the cross-entropy against the target's
distribution, whose gradient does not vanish while the two still hardly overlap.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm

from specdec_lib.distill.students import Batch, Corpus, HeadStudent, PlainStudent

CHUNK = 256  # positions whose distributions are in memory at once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    num_batches: int
    batch_size: int = 4  # conversations
    steps: int = 3  # drafted positions that are unrolled ...
    unroll_from: float = 0.4  # ... from this share of the training on; one position is enough before
    step_decay: float = 0.8  # weight of each drafted position relative to the one before
    learning_rate: float = 1e-3
    warmup: float = 0.03  # share of the training
    acceptance_weight: float = 0.5  # share of -log acceptance in the loss, the rest is cross-entropy
    seed: int = 0


class DistillationLoss(torch.autograd.Function):
    """Loss of S drafted positions against one target distribution, without keeping any [N, V] tensor.

    The gradient is computed with the value, a chunk of positions at a time:
    d cross-entropy / d logits = draft - target, and
    d acceptance / d logits = draft * (under - sum(draft * under)) where under = [draft < target].
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: torch.Tensor,  # [S, N, H], the draft's states
        last_state: torch.Tensor,  # [N, H], the target's
        rows: torch.Tensor,  # [scored, H], output rows of both, bfloat16
        weights: torch.Tensor,  # [S], sum to 1
        acceptance_weight: float,
    ) -> torch.Tensor:  # [S + 1]: the loss, then the mean acceptance of each drafted position
        steps, count, _ = hidden.shape
        grad = torch.empty_like(hidden)
        result = torch.zeros(steps + 1)
        for chunk in torch.arange(count).split(CHUNK):
            target = torch.softmax((last_state[chunk] @ rows.T).float(), dim=-1)
            for step in range(steps):
                log_draft = torch.log_softmax((hidden[step, chunk].bfloat16() @ rows.T).float(), dim=-1)
                draft = log_draft.exp()
                acceptance = torch.minimum(draft, target).sum(-1, keepdim=True)
                entropy = -(log_draft.mul_(target)).sum(-1)
                loss = (1 - acceptance_weight) * entropy - acceptance_weight * acceptance[:, 0].log()
                result[0] += weights[step] * loss.sum()
                result[step + 1] += acceptance.sum()
                under = torch.where(draft < target, draft, 0)
                slope = under.sub_(draft * under.sum(-1, keepdim=True)).mul_(acceptance_weight / acceptance)
                logits_grad = draft.sub_(target).mul_(1 - acceptance_weight).sub_(slope)
                grad[step, chunk] = weights[step] * (logits_grad.bfloat16() @ rows).to(grad.dtype)
        ctx.save_for_backward(grad / count)
        return result / count

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple:
        return ctx.saved_tensors[0] * grad_output[0], None, None, None, None


def batch_loss(
    student: HeadStudent | PlainStudent, batch: Batch, rows: torch.Tensor, steps: int, recipe: Recipe
) -> torch.Tensor:  # [steps + 1]
    """Loss, then acceptance per drafted position, over the assistant's tokens of `batch`."""
    learn = batch.answer[:, 2:].clone()
    learn[:, :steps] = False
    where = learn.nonzero(as_tuple=True)
    hidden = student.unroll(batch, steps)[:, :, :-1][:, where[0], where[1]]
    last_state = batch.last_state(rows.shape[1])[:, 1:-1][where]
    weights = recipe.step_decay ** torch.arange(steps)
    return DistillationLoss.apply(hidden, last_state, rows, weights / weights.sum(), recipe.acceptance_weight)


@torch.no_grad()
def start_from_regression(student: HeadStudent, batch: Batch, strength: float = 1e-2, block_scale: float = 0.2) -> None:
    """Start the head as the best linear guess of the target's next state, which the block then corrects.

    Ridge regression of the target's last state at t + 1 (before its norm's weight) on its features at t and on the
    embedding of token t + 1. What the block adds is scaled down, because that state has unit variance here.
    """
    head, width = student.draft, student.draft.hidden_size
    layers = batch.features[:, :-2].float().unflatten(-1, (-1, width))
    normed = rms_norm(layers, (width,), eps=head.config.norm_eps).flatten(-2)
    embedded = rms_norm(embedding(batch.tokens[:, 1:-1], student.embeddings[0]).float(), (width,))
    answer = batch.answer[:, 2:]
    head.feature_scale.copy_(1 / (normed[answer].std(dim=0) + 1e-3))
    features = normed[answer] * head.feature_scale
    inputs = torch.cat([features, embedded[answer]], dim=-1)
    wanted = batch.last_state(width)[:, 1:-1][answer].float() / head.output_norm
    gram = inputs.T @ inputs
    gram.diagonal().add_(strength * len(inputs))
    weights = torch.linalg.solve(gram, inputs.T @ wanted)  # [F + H, H]
    from_features, from_token = weights[:-width], weights[-width:]
    head.fuse_features.weight.copy_(from_features.T)
    size = (features @ from_features).pow(2).mean(-1).sqrt().mean()  # the state is normalised before it is combined
    head.combine.weight.copy_(torch.cat([from_token.T, size * torch.eye(width)], dim=1))
    head.attention_out.weight.mul_(block_scale)
    head.down.weight.mul_(block_scale)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Linear warm-up, then a cosine down to a tenth-of-a-percent of the peak."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    along = (progress - recipe.warmup) / (1 - recipe.warmup)
    return recipe.learning_rate * (1e-3 + 0.5 * (1 + math.cos(math.pi * min(along, 1))))


def train(student: HeadStudent | PlainStudent, corpus: Corpus, recipe: Recipe) -> dict[str, float]:
    """Train `student` in place; return the number of tokens, the seconds and the mean of the last 50 losses."""
    rows, optimizer = scored_rows(student), make_optimizer(student)
    batches = corpus.batches(recipe.batch_size, torch.Generator().manual_seed(recipe.seed))
    start, tokens, average = time.monotonic(), 0, 0.0
    for count, batch in enumerate(itertools.islice(batches, recipe.num_batches), start=1):
        progress = (count - 1) / recipe.num_batches
        steps = recipe.steps if isinstance(student, HeadStudent) and progress >= recipe.unroll_from else 1
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, progress)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = batch_loss(student, batch, rows, steps, recipe)
        optimizer.zero_grad(set_to_none=True)
        result[0].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        tokens += batch.tokens.numel()
        average += (float(result[0].detach()) - average) / min(count, 50)
        if count % 50 == 0:
            rate = tokens / (time.monotonic() - start)
            now = " ".join(f"{value:.3f}" for value in result[1:].tolist())
            log.info("batch %d, %d tokens, %.0f tokens/s: loss %.3f, acceptance %s", count, tokens, rate, average, now)
    return {"tokens": tokens, "seconds": time.monotonic() - start, "loss": average}


def scored_rows(student: HeadStudent | PlainStudent) -> torch.Tensor:  # [scored, H] bfloat16
    """The output rows of the tokens that a student scores."""
    return student.embeddings[0][student.draft.scored_ids.long()].bfloat16()


@torch.no_grad()
def held_out_acceptance(student: HeadStudent | PlainStudent, corpus: Corpus, steps: int = 3) -> list[float]:
    """Mean acceptance of each of `steps` drafted positions on held-out text, among the scored tokens."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = corpus.held_out.rows(64)
        return batch_loss(student, batch, scored_rows(student), steps, Recipe(num_batches=0))[1:].tolist()


def make_optimizer(student: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)
