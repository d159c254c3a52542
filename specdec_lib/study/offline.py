"""Acceptance without speculating: what the target's own text says of every method, gamma and rule at once.

The target writes a text once. Then target and draft read it, each position at a time, and every draft follows the text
that is there. What speculation emits has the target's law, and so has this text x. Given that it emits x, a step that
starts somewhere keeps at least i draft tokens with probability

    token by token   S_i = product over j <= i of min(1, w_j)       w_j = draft_j(x_j) / target_j(x_j)
    block            S_i = min(1, W_1, ..., W_i)                    W_i = product over j <= i of w_j

(Leviathan et al. 2022; Sun et al. 2024, whose rule keeps the prefix x_1..x_i with probability draft(x_1..x_i) p_i). The
next step starts after the tokens that this one emits, so the expected numbers of steps, of tested and of accepted
tokens follow exactly. Nothing is sampled but the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from specdec_lib.config import PREFILL_CHUNK, SamplingConfig, StudyParams
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.checks import check_context
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.decode import autoregressive_decode
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.proposers.proposer import Drafting
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.sampling import invert, probabilities
from specdec_lib.decoding.uniforms import Uniforms
from specdec_lib.decoding.verification import chance_of
from specdec_lib.machine.files import write_atomically
from specdec_lib.methods import METHODS, make_proposer
from specdec_lib.models.pair import Pair
from specdec_lib.study.prompt_file import Prompt
from specdec_lib.study.prompts import Encoded, encode_prompts, load_prompts, random_prompts
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.workers import heartbeat

FILE = "acceptance.json"
NEW_TOKENS = 64  # of each text
ROWS_AT_ONCE = 4
MOST_PROMPTS = 48

Row = dict[str, object]


@dataclass(frozen=True)
class ForcedOps(PlainOps):
    """Drafts the tokens that stand in place of random numbers, so that a draft follows a given text."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """At temperature 0 those at temperature 1: they hold the second best token too."""
        return probabilities(logits, self.sampling if self.sampling.temperature else SamplingConfig())

    def choose(self, probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return uniforms.long()

    def choose_among(self, ids: torch.Tensor, probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return uniforms.long()


@dataclass(frozen=True)
class Reading:
    """What target and draft said along the texts of some prompts, for every place where a step may start.

    Attributes:
        ratios: `[B, starts, gamma]`, the w_j above.
        overlaps: the same shape: the chance that a draft token is accepted there, sum(min(target, draft)).
        drafted: the same shape: whether a token was drafted.
        copied: `[B, starts]`, whether the first draft token was certain, as one of a lookup is.
        second: `[B, starts]`, the chance that a second candidate, drawn without the first, is accepted after the first
            of a step was rejected; NaN where the first cannot be.
    """

    ratios: np.ndarray
    overlaps: np.ndarray
    drafted: np.ndarray
    copied: np.ndarray
    second: np.ndarray


@torch.inference_mode()
def offline_acceptance(
    pair: Pair,
    methods: Sequence[str],
    prompts: Sequence[Encoded],
    *,
    sampling: SamplingConfig,
    gammas: Sequence[int],
    generator: torch.Generator | None = None,
    new_tokens: int = NEW_TOKENS,
) -> list[Row]:
    """The expected acceptance of each method and gamma on each prompt; no step of speculation is run.

    Args:
        prompts: with their token ids.
        generator: of the texts; may be left out at temperature 0.
        new_tokens: of each text, more than the largest gamma.

    Returns:
        a row per method of one chain, prompt and gamma; see `expected_counts` for its counts. `category` and
        `prompt_id` are the prompt's.

    Raises:
        ValueError: prompts and text exceed the context of target or draft, or the text is no longer than gamma.
    """
    if new_tokens <= (gamma := max(gammas)) + 1:
        raise ValueError(f"new_tokens is {new_tokens}: give more than {gamma + 1}, the largest gamma and one more")
    for model in (pair.target, pair.draft):
        check_context(model, max((len(ids) for _, ids in prompts), default=0), new_tokens)
    found: list[Row] = []
    for first in range(0, len(prompts), ROWS_AT_ONCE):
        part = prompts[first : first + ROWS_AT_ONCE]
        ids = [tokens for _, tokens in part]
        written = autoregressive_decode(
            pair.target, ids, max_new_tokens=new_tokens, sampling=sampling, generator=generator
        ).tokens
        text = _Text(pair, ids, torch.stack(written).to(pair.target.device), sampling)
        for method in (name for name in methods if METHODS[name].chains == 1):
            reading = text.read(method, gamma)
            for row, (prompt, _) in enumerate(part):
                facts = {"method": method, "temperature": sampling.temperature}
                facts |= {"category": prompt.category, "prompt_id": prompt.id}
                found += [facts | expected_counts(reading, row, each) for each in gammas]
    return found


class _Text:
    """Prompts with the target's continuations `[B, n]`, read by the target."""

    def __init__(self, pair: Pair, prompts: Sequence[torch.Tensor], written: torch.Tensor, sampling: SamplingConfig):
        self.pair, self.prompts, self.written, self.sampling = pair, prompts, written, sampling
        target = pair.target
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=target.device)
        self.num_tokens, self.longest = written.shape[1], max(map(len, prompts))
        self.tokens = torch.zeros(len(prompts), self.longest + self.num_tokens, dtype=torch.int64, device=target.device)
        for row, prompt in enumerate(prompts):
            whole = torch.cat([prompt.to(target.device), written[row]])
            self.tokens[row, : len(whole)] = whole
        hidden, self.features = self._read_by_target()
        places = self.lengths[:, None] - 1 + torch.arange(self.num_tokens, device=target.device)
        hidden = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[-1]))
        self.target_probs = probabilities(target.logits(hidden), sampling)  # [B, n, V]
        if sampling.temperature == 0:  # the text is greedy, even where passes of other lengths round otherwise
            self.target_probs = torch.zeros_like(self.target_probs).scatter_(2, written[:, :, None], 1.0)

    def _read_by_target(self) -> tuple[torch.Tensor, torch.Tensor]:  # hidden [B, T, H], features [B, T, F]
        cache = self.pair.target.new_cache(len(self.tokens), 2 * self.tokens.shape[1])  # with room for early exits
        passes = []
        for chunk in self.tokens.split(PREFILL_CHUNK, dim=1):
            passes.append(self.pair.target.forward(chunk, cache))
            cache.commit(chunk.shape[1], at_most=chunk.shape[1])
        self.cache = cache
        return torch.cat([step.hidden for step in passes], dim=1), torch.cat([step.features for step in passes], dim=1)

    def read(self, method: str, gamma: int) -> Reading:
        """Let a method draft at each place, along the text."""
        found = list(self._along(self._call(gamma), method, gamma))
        return Reading(*(torch.stack(parts, dim=1).double().cpu().numpy() for parts in zip(*found, strict=True)))

    def _call(self, gamma: int) -> Call:
        target, batch, width = self.pair.target, len(self.prompts), gamma + 1
        rows = Rows(target, batch_size=batch, capacity=self.tokens.shape[1] + width, width=width, num_stops=0)
        rows.fill(self.prompts, self.num_tokens, ())
        rows.tokens[:, : self.tokens.shape[1]] = self.tokens
        numbers = Uniforms(torch.zeros(batch, 1, width, dtype=torch.float64, device=target.device))
        ops, counters = ForcedOps(self.sampling), Counters(gamma, target.device)
        return Call(target, self.sampling, gamma, ops, rows, counters, numbers, cache=self.cache)

    def _along(self, call: Call, method: str, gamma: int) -> Iterator[tuple[torch.Tensor, ...]]:
        proposer = make_proposer(method, self.pair)
        if self.pair.translation and self.pair.translation.retokenise:
            # What is drafted is text, and certain once it is: a sample of it stands for its law.
            call = replace(call, ops=PlainOps(self.sampling))
        rows, drafting = call.rows, proposer.start(call)
        self._read_prompt(rows, drafting)
        generator = torch.Generator().manual_seed(0)
        for emitted in range(1, self.num_tokens - gamma + 1):
            rows.lengths.copy_(self.lengths + emitted)
            rows.num_emitted.fill_(1)
            rows.max_length = self.longest + emitted
            last = (rows.lengths - 2)[:, None, None].expand(-1, 1, self.features.shape[-1])
            rows.features[:, :1] = self.features.gather(1, last)
            text = self.written[:, emitted : emitted + gamma]
            numbers = text.double() if isinstance(call.ops, ForcedOps) else torch.rand(text.shape, dtype=torch.float64)
            numbers = torch.nn.functional.pad(numbers.to(text.device), (0, 1))
            _, draft_probs = drafting.propose(rows, gamma, numbers)  # perhaps of fewer places
            draft_probs = torch.nn.functional.pad(draft_probs, (0, 0, 0, gamma - draft_probs.shape[1]))
            yield self._compared(self.target_probs[:, emitted : emitted + gamma], draft_probs, text, generator)

    def _read_prompt(self, rows: Rows, drafting: Drafting) -> None:
        for start in range(0, self.longest, PREFILL_CHUNK):
            end = min(start + PREFILL_CHUNK, self.longest)
            drafting.read_prompt(rows, start, end, self.features[:, start:end])

    def _compared(
        self, target: torch.Tensor, draft: torch.Tensor, text: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:  # [B, gamma, V], [B, gamma, V], [B, gamma]
        """The parts of a `Reading` at one place."""
        drafted = draft.sum(dim=-1) > 0
        likely = draft
        if self.sampling.temperature == 0:
            draft = torch.zeros_like(draft).scatter_(-1, draft.argmax(-1, keepdim=True), 1.0) * drafted[:, :, None]
        draft = draft.to(target.dtype)
        chance = chance_of(text, target)  # 0 only where rounding put the token out of a filter
        ratios = torch.where(chance > 0, chance_of(text, draft) / chance, 0.0)
        overlaps = torch.minimum(target, draft).sum(dim=-1)
        second = _second_candidate(target[:, 0], draft[:, 0], likely[:, 0], generator)
        return ratios, overlaps, drafted, likely[:, 0].amax(dim=-1) == 1, second


def _second_candidate(
    target: torch.Tensor, draft: torch.Tensor, likely: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:  # [B, V] each -> [B]
    """The chance that a second draft token is accepted after the first was rejected (recursive rejection sampling).

    The residual of the target meets the draft without the first token (SpecInfer, arXiv 2305.09781). The first token
    is drawn from the law of rejected ones, max(draft - target, 0).

    Args:
        likely: the draft's distribution, or at temperature 0 the one whose best token `draft` is.
    """
    rejected = (draft - target).clamp(min=0)
    numbers = torch.rand(len(draft), dtype=torch.float64, generator=generator).to(draft.device)
    first = invert(rejected, numbers)[:, None]
    others = likely.to(draft.dtype).scatter(1, first, 0.0)
    best = torch.zeros_like(others).scatter_(1, others.argmax(1, keepdim=True), 1.0) * others.any(1, keepdim=True)
    certain = draft.amax(1, keepdim=True) == 1  # then its second best is as certain
    others = torch.where(certain, best, others)
    residual = (target - draft).clamp(min=0)
    known = rejected.sum(dim=1) > 0
    norms = residual.sum(1).clamp(min=1e-30), others.sum(1).clamp(min=1e-30)
    accepted = torch.minimum(residual / norms[0][:, None], others / norms[1][:, None]).sum(dim=1)
    return torch.where(known, accepted, torch.nan)


def expected_counts(reading: Reading, row: int, gamma: int) -> Row:
    """What speculation with `gamma` would count on one text, in expectation.

    Returns:
        num_draft_tokens; steps and tokens (which these emit) by the rule of a token, and block_steps and block_tokens
        by the block's; tested_by_position and accepted_by_position, gamma numbers each, by the rule of a token; copied,
        the steps whose first draft token is certain; rejected_first, the first draft tokens that are rejected, and
        saved_by_second, those of them in whose place a second candidate would be accepted.
    """
    ratios, overlaps, drafted = (part[row, :, :gamma] for part in (reading.ratios, reading.overlaps, reading.drafted))
    kept = np.cumprod(np.minimum(ratios, 1), axis=1)
    in_block = np.minimum.accumulate(np.minimum(np.cumprod(ratios, axis=1), 1), axis=1)
    before = np.concatenate([np.ones((len(kept), 1)), kept[:, :-1]], axis=1)
    starts, block_starts = _starts(kept), _starts(in_block)
    rejected = starts * (1 - overlaps[:, 0]) * drafted[:, 0]
    second = np.nan_to_num(reading.second[row])
    return {
        "num_draft_tokens": gamma,
        "steps": float(starts.sum()),
        "tokens": float(starts @ (1 + kept.sum(axis=1))),
        "block_steps": float(block_starts.sum()),
        "block_tokens": float(block_starts @ (1 + in_block.sum(axis=1))),
        "tested_by_position": (starts @ (before * drafted)).tolist(),
        "accepted_by_position": (starts @ (before * overlaps)).tolist(),
        "copied": float(starts @ reading.copied[row]),
        "rejected_first": float(rejected.sum()),
        "saved_by_second": float(rejected @ second),
    }


def _starts(kept: np.ndarray) -> np.ndarray:  # [starts, gamma] -> [starts]
    """The chance that a step starts at each place: the first one does, and each after the tokens of another."""
    gamma = kept.shape[1]
    padded = np.concatenate([np.ones((len(kept), 1)), kept, np.zeros((len(kept), 1))], axis=1)
    emits = padded[:, :-1] - padded[:, 1:]  # the chance of 1 .. gamma + 1 tokens
    starts = np.zeros(len(kept) + gamma + 1)
    starts[0] = 1.0
    for place in range(len(kept)):
        starts[place + 1 : place + gamma + 2] += starts[place] * emits[place]
    return starts[: len(kept)]


def profile_prompts(params: StudyParams, pair: Pair) -> list[Encoded]:
    """The prompts to profile with: those of the study's set that its sweep does not decode, or all if it takes all.

    So what is advised is not fitted to what it is compared with. Prompts too long for target or draft are left out.
    """
    if pair.tokenizer is None:
        ids = random_prompts(pair.target.vocab_size, 6, 0, torch.Generator().manual_seed(params.seed + 1))
        return [(Prompt(f"profile-{number}", "random", ""), tokens) for number, tokens in enumerate(ids)]
    known = load_prompts(params.prompt_set, params.turns)
    unseen = known[params.num_prompts :] or known
    room = min(pair.target.context_length, pair.draft.context_length) - NEW_TOKENS
    found = zip(unseen, encode_prompts(unseen, pair.tokenizer, 0), strict=True)
    return [(prompt, ids) for prompt, ids in found if len(ids) <= room][:MOST_PROMPTS]


def profile_acceptance(pair: Pair, params: StudyParams) -> list[Row]:
    """The expected acceptance of a study's methods, gammas and temperatures on prompts that its sweep does not see."""
    prompts = profile_prompts(params, pair)
    rows = []
    for temperature in params.temperatures:
        rows += offline_acceptance(
            pair,
            params.methods,
            prompts,
            sampling=SamplingConfig(temperature, params.top_k, params.top_p),
            gammas=params.num_draft_tokens,
            generator=torch.Generator().manual_seed(params.seed),
        )
    return rows


def write_acceptance(folder: Path, rows: Sequence[Row]) -> None:
    """Write `acceptance.json`, numbers to four digits: expectations, so that their evidence is "predicted"."""
    rounded = json.loads(json.dumps(rows), parse_float=lambda number: float(f"{float(number):.5g}"))
    write_atomically(Path(folder) / FILE, json.dumps({"evidence": "predicted", "rows": rounded}) + "\n")


def measure_acceptance(runner: BlockRunner) -> None:
    """Write the expected acceptance of a run's pair; none of random weights, or of a target that processes share.

    What fails is printed, and the file is left out: the rows of the sweep stand without it.
    """
    if runner.team.size > 1 or runner.params.accepted_per_step:
        return
    heartbeat.write_heartbeat(runner.folder, heartbeat.MACHINE, runner.run_id)
    try:
        write_acceptance(runner.folder, profile_acceptance(runner.pair, runner.params))
    except Exception as error:  # noqa: BLE001 - out of memory or anything else
        (runner.folder / FILE).unlink(missing_ok=True)
        print(f"no expected acceptance: {type(error).__name__}: {error}", flush=True)
