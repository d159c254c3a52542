"""What is counted on the device, and read once when all rows are done."""

from __future__ import annotations

import torch

from specdec_lib.decoding.rows import Rows


class Counters:
    """Counts over all rows of a call.

    Args:
        num_draft_tokens: gamma, 0 for the baseline.

    Attributes:
        counts: `[1 + 3 gamma]` int64: verifications, counted once for every unfinished row; then tokens drafted, tested
            and accepted, each by position in the draft.
    """

    def __init__(self, num_draft_tokens: int, device: torch.device):
        self.counts = torch.zeros(1 + 3 * num_draft_tokens, dtype=torch.int64, device=device)
        self.position = torch.arange(num_draft_tokens, device=device)

    def count(
        self,
        rows: Rows,  # after `append`
        drafted: torch.Tensor,  # [B, m] bool, m at most gamma; False where nothing was drafted
        num_accepted: torch.Tensor,  # [B]
    ) -> None:
        """Count a step. A row's last token before its limit counts as the target's own, whether drafted or not.

        So without stop tokens a row emits one token more than it accepts in every step.
        """
        drafted = torch.nn.functional.pad(drafted, (0, len(self.position) - drafted.shape[1]))
        emitted, room = rows.num_emitted, rows.ends - rows.lengths + rows.num_emitted
        active = (emitted > 0)[:, None]
        decided = drafted & (self.position < emitted.minimum(room - 1)[:, None])
        tested = decided & (self.position <= num_accepted[:, None])
        accepted = decided & (self.position < num_accepted[:, None])
        rows.num_tested.copy_(tested.sum(dim=1))
        self.counts += torch.cat([active, drafted & active, tested, accepted], dim=1).sum(dim=0)

    def count_other_chain(self, rows: Rows) -> None:
        """Count the draft tokens of a chain that was not verified; after `count`."""
        self.counts[1 : 1 + len(self.position)] += (rows.num_emitted > 0).sum()

    def read(self) -> tuple[int, int, list[int], list[int]]:
        """Steps, drafted tokens, and tested and accepted tokens by position; waits for the device."""
        steps, *counts = self.counts.tolist()
        gamma = len(self.position)
        return steps, sum(counts[:gamma]), counts[gamma : 2 * gamma], counts[2 * gamma :]
