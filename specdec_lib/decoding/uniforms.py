"""The random numbers of a call: one table, drawn from row by row.

A row's numbers depend on the seed and on the row's own number, so that its tokens do not depend on the other rows of
the batch. Whoever wants other numbers, such as the enumeration, hands in a table of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

DRAWS_PER_STEP = 2  # to propose, and to verify


class Uniforms:
    """A table of uniform numbers, and how many of its draws have been taken.

    Args:
        table: `[B, draws, width]` float64 in [0, 1): of each row, `width` numbers a draw.
    """

    def __init__(self, table: torch.Tensor):
        self.table, self.taken = table, 0

    def next(self) -> torch.Tensor:  # [B, width]
        """The next draw of every row, a view of the table."""
        self.taken += 1
        return self.table[:, self.taken - 1]


def draws_of_call(max_new_tokens: int) -> int:
    """The most draws that a call takes: one for the first token, then those of a step for each further token."""
    return 1 + DRAWS_PER_STEP * (max_new_tokens - 1)


def seeded_table(seed: int, row_numbers: Sequence[int], draws: int, width: int) -> torch.Tensor:
    """The table `[B, draws, width]` of rows with these numbers under `seed`, float64 on the CPU.

    Each row has a NumPy generator of its own: torch's keeps 32 bits of a seed, too few to tell many rows apart.
    """
    rows = [np.random.default_rng((seed, number)).random((draws, width)) for number in row_numbers]
    return torch.from_numpy(np.stack(rows))


def table_of_call(
    generator: torch.Generator | None, row_numbers: Sequence[int], draws: int, width: int, *, greedy: bool
) -> torch.Tensor:
    """The table of one call. Its seed is drawn from `generator`; greedy decoding looks at no number, so needs none.

    Raises:
        ValueError: a generator is missing where tokens are sampled.
    """
    if greedy:
        return torch.zeros(1, 1, 1, dtype=torch.float64).expand(len(row_numbers), draws, width)
    if generator is None:
        raise ValueError(
            "generator is missing: give torch.Generator().manual_seed(...), or temperature 0, which needs none"
        )
    seed = int(torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device))
    return seeded_table(seed, row_numbers, draws, width)
