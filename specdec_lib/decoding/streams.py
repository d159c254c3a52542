"""Random numbers by row: what a row of a batch draws depends on its own stream, never on the rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

MULTIPLIERS, WEYL = (0xCD9E8D57, 0xD2511F53), (0x9E3779B9, 0xBB67AE85)  # of Philox4x32
ROUNDS = 10
WORD = 0xFFFFFFFF
AHEAD = 1024  # numbers of a row that are made at once, so that a step rarely makes any
AT_ONCE = 2**18  # numbers over all rows, unless one passage needs more


class RowStreams(torch.Generator):
    """One stream of random numbers for each row; stands wherever decoding asks for a `torch.Generator`.

    A number is a function of seed, row, passage and place in the passage, by Philox4x32-10 (Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3"): the same on every device, made for all rows at once without waiting
    for the device, and never handed out twice. Proposing and verifying are passages of their own, so that how many
    numbers a proposer takes, which may depend on the other rows, does not shift what verification gets.

    Args:
        seed: 64 bits, or a tensor `[1]` on the device that holds them.
        rows: the number of each row's stream; under one seed, equal numbers are the same stream.
        device: of the numbers.
    """

    def __new__(cls, seed: int | torch.Tensor, rows: Sequence[int], device: torch.device | str = "cpu") -> Self:  # noqa: ARG004
        return super().__new__(cls, device)  # type: ignore[call-arg]

    def __init__(self, seed: int | torch.Tensor, rows: Sequence[int], device: torch.device | str = "cpu"):
        words = seed if isinstance(seed, torch.Tensor) else torch.tensor([seed], device=device)
        self.round_keys = round_keys(torch.stack([words & WORD, words >> 32 & WORD]))
        self.rows = torch.tensor(list(rows), device=device)  # [B]
        self.multipliers = torch.tensor(MULTIPLIERS, device=device)[:, None]
        self.passage = self.taken = 0
        self.first = 0  # of the passages that are made
        self.made = torch.empty(len(self.rows), 0, 2, dtype=torch.float64, device=device)  # [B, passages, numbers]

    @classmethod
    def of(cls, generator: torch.Generator, batch_size: int, width: int) -> RowStreams:
        """The streams for one call: those given, or else rows numbered from 0 under a seed drawn from `generator`.

        Args:
            width: how many numbers a passage is expected to take; more may be taken.

        Raises:
            ValueError: streams are given, but not one for each row.
        """
        if not isinstance(generator, RowStreams):
            seed = torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device)
            generator = cls(seed, range(batch_size), generator.device)
        if len(generator.rows) != batch_size:
            raise ValueError(f"{len(generator.rows)} streams for {batch_size} prompts: name one row for each prompt")
        generator.made = generator.made.new_empty(batch_size, 0, width + width % 2)
        generator.next_passage()
        return generator

    def next_passage(self) -> None:
        """Leave what this passage has not taken."""
        self.passage, self.taken = self.passage + 1, 0

    def take(self, count: int) -> torch.Tensor:
        """The next `count` numbers of each row, `[B, count]`, uniform in [0, 1), float64."""
        end = self.taken + count
        if end > self.made.shape[2] or self.passage >= self.first + self.made.shape[1]:
            self._make(end)
        numbers = self.made[:, self.passage - self.first, self.taken : end]
        self.taken = end
        return numbers

    def _make(self, needed: int) -> None:
        """Make at least `needed` numbers of this passage, and as many of those behind it."""
        batch, _, width = self.made.shape
        while width < needed:
            width *= 2
        self.first, passages = self.passage, max(1, min(AHEAD // width, AT_ONCE // (width * batch)))
        self.made = self.numbers_of(self.first, passages, width)

    def numbers_of(self, first: int, passages: int, width: int) -> torch.Tensor:  # [B, passages, width]
        """The first `width` numbers, which is even, of so many passages."""
        batch, device = len(self.rows), self.rows.device
        place = torch.arange(width // 2, device=device)  # four words make two numbers
        passage = torch.arange(first, first + passages, device=device)[:, None]
        counter = torch.broadcast_tensors(place, passage, self.rows[:, None, None], torch.zeros_like(place))
        words = philox(torch.stack(counter).flatten(1), self.round_keys, self.multipliers)
        bits = words[::2] << 21 | words[1::2] >> 11  # [2, B * passages * width / 2], 53 bits
        return (bits.T.double() * 2.0**-53).reshape(batch, passages, width)


class CountedStreams(RowStreams):
    """The numbers of other streams, made for a whole call, with the passage counted on the device.

    A captured step finds in them what it would have drawn at this point of the call.

    Args:
        passages: the most that a call enters.
        width: the most numbers that a passage takes.
    """

    def __init__(self, batch_size: int, passages: int, width: int, device: torch.device):
        super().__init__(0, range(batch_size), device)
        width += width % 2
        self.made = torch.zeros(batch_size, passages, width, dtype=torch.float64, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)  # of this passage in `made`

    def __new__(cls, batch_size: int, passages: int, width: int, device: torch.device) -> Self:  # noqa: ARG004
        return super().__new__(cls, 0, (), device)

    def restart(self, source: RowStreams, passages: int) -> None:
        """Take the numbers of so many passages from `source`, beginning with the one that it is in."""
        self.made[:, :passages] = source.numbers_of(source.passage, passages, self.made.shape[2])
        self.place.zero_()
        self.passage = self.taken = 0

    def next_passage(self) -> None:
        super().next_passage()
        self.place += 1

    def take(self, count: int) -> torch.Tensor:
        numbers = self.made.index_select(1, self.place)[:, 0, self.taken : self.taken + count]
        self.taken += count
        assert self.taken <= self.made.shape[2], "a passage takes more numbers than were said"
        return numbers


def uniforms(like: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random numbers in [0, 1) for each row of `like` `[B, ...]`: `[B, count]`, float64.

    From `RowStreams`, which decoding hands on, row by row; from any other generator for all rows together.
    """
    if isinstance(generator, RowStreams):
        return generator.take(count)
    return torch.rand((len(like), count), generator=generator, dtype=torch.float64, device=like.device)


def round_keys(key: torch.Tensor) -> torch.Tensor:
    """The keys of Philox's rounds, `[10, 2, n]`, from a key of two 32-bit words `[2, n]`."""
    bump = torch.tensor(WEYL, device=key.device)[:, None]
    return torch.stack([key + turn * bump & WORD for turn in range(ROUNDS)])


def philox(counter: torch.Tensor, keys: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    """Philox4x32-10: four 32-bit words `[4, n]` from as many of a counter `[4, n]`; words are kept in int64.

    Args:
        keys: of `round_keys`.
        multipliers: `MULTIPLIERS` as a tensor `[2, 1]` on the counter's device.
    """
    even, odd = counter[::2], counter[1::2]
    for key in keys:
        product = even.flip(0) * multipliers  # wraps; its bits are those of the unsigned product
        even, odd = (product >> 32 & WORD) ^ odd ^ key, product & WORD
    return torch.stack([even[0], odd[0], even[1], odd[1]])
