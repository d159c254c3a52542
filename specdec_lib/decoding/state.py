"""The rows in flight: their tokens and lengths, when they are done, and the one look the host takes at each step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Integral

import torch

from specdec_lib.decoding.verification import Verification
from specdec_lib.kernels import rows, vocabulary
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.runner import PREFILL_CHUNK, LanguageModel


class DecodeState:
    """A ragged batch while it is decoded. Baseline and speculation share it, so stopping and timing cannot differ.

    Its tensors are made once and then changed in place, so that a captured step finds them where they were.

    Args:
        prompts: B one-dimensional int64 tensors of token ids, of any lengths; checked by `check_prompts`.
        max_new_tokens: exactly how many tokens each row gets unless a stop token ends it earlier.
        stop_token_ids: a row ends with the first of these it emits.
        slack: the most tokens that a step emits in a row, and so how far behind its length a step may write.
        capacity: positions to hold for each row, if more than these prompts need.
        caches: where caches are kept to be used again by other states of this batch size and capacity.
    """

    def __init__(
        self,
        target: LanguageModel,
        prompts: Sequence[torch.Tensor],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        slack: int,
        capacity: int = 0,
        caches: dict[object, RaggedStaticCache] | None = None,
    ):
        device, batch = target.device, len(prompts)
        self.slack, self.caches = slack, caches
        self.batch_size, self.vocab_size = batch, target.vocab_size
        self.capacity = max(capacity, positions_needed(prompts, max_new_tokens, slack))
        self.prompt_lengths = torch.zeros(batch, dtype=torch.int64, device=device)  # [B]
        self.lengths = torch.zeros_like(self.prompt_lengths)  # [B], prompt and emitted tokens
        self.ends = torch.zeros_like(self.prompt_lengths)  # [B], the length that ends a row
        self.tokens = torch.zeros(batch, self.capacity, dtype=torch.int64, device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)
        self.stops = torch.zeros(len(stop_token_ids), dtype=torch.int64, device=device)
        self.num_emitted = torch.zeros_like(self.prompt_lengths)  # by the last step
        # Verifications; tokens drafted, tested and accepted, each by position: read once, when all rows are done.
        self.counts = torch.zeros(1 + 3 * (slack - 1), dtype=torch.int64, device=device)
        width = target.hidden_size * (1 + len(target.feature_layers))
        self.features = torch.zeros(
            batch, slack, width, dtype=target.dtype, device=device
        )  # of the tokens verified last
        self.report = torch.zeros(3 + batch, dtype=torch.int64, device=device)  # what the host learns of a step
        # What a step without a draft has for draft tokens and their chances, of which none are accepted.
        self.nothing_drafted = self.tokens[:, :0], torch.zeros(batch, 0, device=device), torch.zeros_like(self.lengths)
        self.restart(prompts, max_new_tokens, stop_token_ids)

    def restart(self, prompts: Sequence[torch.Tensor], max_new_tokens: int, stop_token_ids: Sequence[int]) -> None:
        """Begin anew with as many other prompts and stop tokens, which fit the capacity."""
        assert positions_needed(prompts, max_new_tokens, self.slack) <= self.capacity
        assert (len(prompts), len(stop_token_ids)) == (self.batch_size, len(self.stops))
        self.started = time.perf_counter()
        self.max_new_tokens = max_new_tokens
        self.longest_prompt = self.longest = max(map(len, prompts))  # `longest` as the host last saw it
        self.max_length = self.longest  # a bound the host knows without asking the device
        self.left = max_new_tokens  # the most tokens that an unfinished row may still emit, as the host last saw it
        self.owed = [max_new_tokens] * self.batch_size  # the same of every row, whether it is finished or not
        self.prompt_lengths.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        self.lengths.copy_(self.prompt_lengths)
        self.ends.copy_(self.prompt_lengths + max_new_tokens)
        self.stops.copy_(torch.tensor(list(stop_token_ids), dtype=torch.int64))
        for row, prompt in enumerate(prompts):
            self.tokens[row, : len(prompt)] = prompt.to(self.tokens.device)
        for buffer in (self.done, self.broken, self.num_emitted, self.counts, self.features):
            buffer.zero_()
        self.emitted: list[list[int]] = []  # B numbers for prefill and each step
        self.times: list[float] = []  # seconds since the start, for prefill and each step
        self.capture_s = 0.0  # seconds spent on capturing steps, which `times` leave out
        self.replayed = False  # whether steps were replayed

    def new_cache(self, model: LanguageModel | DraftHead, role: str) -> RaggedStaticCache:
        """An empty cache of `model` for these rows; with `caches`, the same one whenever it plays this `role`."""
        if self.caches is None:
            return model.new_cache(self.batch_size, self.capacity)
        if (role, model) not in self.caches:
            self.caches[role, model] = model.new_cache(self.batch_size, self.capacity)
        cache = self.caches[role, model]
        cache.set_lengths(torch.zeros_like(self.lengths), 0)
        return cache

    @property
    def reading_is_free(self) -> bool:
        """Whether code may branch on the value of a tensor: on a CPU, where it waits for nothing, unless captured."""
        return self.tokens.device.type == "cpu" and self.caches is None

    @property
    def remaining(self) -> torch.Tensor:  # [B]
        """Tokens that each row may still emit."""
        return self.ends - self.lengths

    def all_have_room(self, num_tokens: int) -> bool:
        """Whether the host knows that every row may still emit more than `num_tokens` tokens, or has emitted all.

        It does without waiting where it sees the end of each step before it begins the next.
        """
        return self.reading_is_free and all(owed > num_tokens for owed in self.owed if owed)

    def last_token(self) -> torch.Tensor:  # [B, 1]
        """The last token of each row."""
        return self.tokens.gather(1, (self.lengths - 1)[:, None])

    def emit(self, token: torch.Tensor, probs: torch.Tensor) -> None:
        """Append to each unfinished row its `token` `[B, 1]`, drawn from `probs` `[B, 1, V]`."""
        draft_tokens, chances, num_accepted = self.nothing_drafted
        self.commit(draft_tokens, chances, probs, Verification(num_accepted, token[:, 0]))

    def commit(
        self,
        draft_tokens: torch.Tensor,  # [B, gamma]
        chances: torch.Tensor,  # [B, gamma], what the draft gave each of them; 0 where nothing was drafted
        target_probs: torch.Tensor,  # [B, gamma+1, V]; a NaN makes all V of them NaN
        verdict: Verification,
    ) -> None:
        """Append to each unfinished row what was accepted and the token behind it, up to a stop token, and count.

        A NaN among the probabilities is remembered: `look` raises.
        """
        if self.reading_is_free and vocabulary.serves(target_probs, chances):
            before = self.tokens, self.lengths, self.ends, self.done, self.stops, self.broken
            outcome = self.num_emitted, self.counts, self.report
            step = draft_tokens, chances, target_probs, verdict.num_accepted, verdict.next_token
            rows.commit([*before, *outcome], *step)
            return
        self.broken |= target_probs[:, :, 0].isnan().any()
        drafted, tokens = draft_tokens.shape[1] > 0, verdict.next_token[:, None]
        if drafted:
            self.broken |= chances.isnan().any()
            tokens = torch.cat([draft_tokens, tokens], dim=1).scatter_(1, verdict.num_accepted[:, None], tokens)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        self.tokens.scatter_(1, self.lengths[:, None] + index, tokens)
        self.num_emitted.copy_((verdict.num_accepted + 1) * ~self.done)
        if len(self.stops):
            offered = index < self.num_emitted[:, None]
            stops = (tokens[:, :, None] == self.stops).any(dim=2) & offered
            kept = offered & (stops.cumsum(dim=1) - stops.long() == 0)
            self.num_emitted.copy_(kept.sum(dim=1))
            self.done |= stops.any(dim=1)
        if drafted:
            self._count(chances > 0, verdict.num_accepted, index[:-1])
        self.lengths += self.num_emitted
        self.done |= self.lengths >= self.ends
        left, longest = (self.remaining * ~self.done).amax(dim=0, keepdim=True), self.lengths.amax(dim=0, keepdim=True)
        torch.cat([left, longest, self.broken[None], self.num_emitted], out=self.report)

    def _count(self, proposed: torch.Tensor, num_accepted: torch.Tensor, position: torch.Tensor) -> None:
        """Count what a row emits, before its length tells of it; a stop token ends what counts."""
        active = (self.num_emitted > 0)[:, None]
        tested = proposed & (position < (num_accepted + 1).minimum(self.num_emitted)[:, None]) & self.of_use(position)
        accepted = position < num_accepted.minimum(self.num_emitted)[:, None]
        self.counts += torch.cat([active, proposed & active, tested, accepted], dim=1).sum(dim=0)

    def of_use(self, position: torch.Tensor) -> torch.Tensor:  # [B, gamma]
        """Where a draft token can be of use: a step emits one token more than it accepts."""
        return position < self.remaining[:, None] - 1

    def look(self) -> bool:
        """The step's one synchronisation: read its report. Whether every row is done; see `note`."""
        return self.note(self.report.tolist())

    def note(self, report: list[int]) -> bool:
        """Take in what `report` says of the next step: its time, what it emitted; returns whether every row is done.

        Raises:
            ValueError: the target's or the draft's logits held a NaN in this step.
        """
        self.times.append(time.perf_counter() - self.started)
        self.left, self.longest, broken, *emitted = report
        if broken:
            raise ValueError(
                f"the logits hold NaN at step {len(self.times) - 1} (0 is the prefill): "
                "check the weights, or load them in float32"
            )
        self.emitted.append(emitted)
        self.owed = [owed - new for owed, new in zip(self.owed, emitted, strict=True)]
        self.max_length = self.longest
        return self.left == 0

    def output(self) -> list[torch.Tensor]:
        """New tokens of each row, on the CPU: ordinary tensors, which training may use and anyone may change."""
        tokens, starts, ends = self.tokens.cpu(), self.prompt_lengths.tolist(), self.lengths.tolist()
        with torch.inference_mode(False):
            return [tokens[row, start:end].clone() for row, (start, end) in enumerate(zip(starts, ends, strict=True))]

    def prompt_chunks(self) -> list[tuple[int, int]]:
        """Where each prefill pass starts and ends."""
        starts = range(0, self.longest_prompt, PREFILL_CHUNK)
        return [(start, min(start + PREFILL_CHUNK, self.longest_prompt)) for start in starts]

    def prompt_tokens_in(self, start: int, end: int) -> torch.Tensor:  # [B]
        """How many of the positions start..end belong to each row's prompt."""
        return (self.prompt_lengths - start).clamp(0, end - start)


def positions_needed(prompts: Sequence[torch.Tensor], max_new_tokens: int, slack: int) -> int:
    """Positions that a row of these prompts may reach."""
    return max(map(len, prompts)) + max_new_tokens + slack


def check_prompts(
    target: LanguageModel, prompts: Sequence[torch.Tensor], max_new_tokens: int, stop_token_ids: Sequence[int]
) -> None:
    """Refuse what cannot be decoded.

    Raises:
        ValueError: no prompts, an empty one, a token id outside the vocabulary, more tokens than the context holds, or
            what is no list of them.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least 1")
    if not isinstance(stop_token_ids, Sequence) or not all(isinstance(token, Integral) for token in stop_token_ids):
        raise ValueError(f"stop_token_ids is {stop_token_ids!r}: give a tuple of token ids, () for none")
    if not isinstance(prompts, list | tuple):
        raise ValueError(f"prompts is a {type(prompts).__name__}: give a list of 1-D tensors, one for each row")
    if not prompts:
        raise ValueError("there are no prompts: give a list of at least one 1-D tensor of token ids")
    for row, prompt in enumerate(prompts):
        if prompt.dim() != 1 or prompt.dtype != torch.int64:
            raise ValueError(
                f"prompt {row} is {prompt.dtype} {list(prompt.shape)}: give a 1-D int64 tensor of token ids"
            )
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty: give it at least one token, such as the start-of-text token")
        if int(prompt.min()) < 0 or int(prompt.max()) >= target.vocab_size:
            raise ValueError(
                f"prompt {row} has a token id outside 0..{target.vocab_size - 1}: use the target's tokenizer"
            )
        check_context(target, len(prompt), max_new_tokens)


def check_generator(generator: torch.Generator, target: LanguageModel) -> None:
    """Refuse a generator on another device than the target's."""
    if (generator.device.type, generator.device.index or 0) != (target.device.type, target.device.index or 0):
        raise ValueError(
            f"the generator is on {generator.device} and {target.name} on {target.device}: "
            f"make it with torch.Generator({str(target.device)!r})"
        )


def check_context(model: LanguageModel | DraftHead, prompt_tokens: int, max_new_tokens: int) -> None:
    """Refuse more tokens than `model` has positions for."""
    if prompt_tokens + max_new_tokens > model.context_length:
        raise ValueError(
            f"{prompt_tokens} prompt tokens and {max_new_tokens} new ones exceed the context of {model.name}, "
            f"{model.context_length} tokens: shorten the prompt or lower max_new_tokens"
        )
