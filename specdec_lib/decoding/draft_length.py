"""How many of gamma tokens a row drafts in a step: all of them, or as many as seem to pay.

Every policy here is exact, because it decides whether a place is drafted without a look at the token drawn there. It
may look at earlier steps, at the tokens drafted before that place, and at the draft's distribution there. So after each
text, the place is either drafted from a distribution or not drafted, which a row of zeros in `draft_probs` says. A rule
of verification is exact for any distribution after any text, also for none.

To drop a token because it came out unlikely is not exact: what stays is likelier than `draft_probs` says.
`exactness.mutants` has that one, and the enumeration finds it.

A row's length depends on nothing of other rows, so that its tokens do not either. What is saved is for the batch: it
drafts and verifies as many places as its longest draft has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from specdec_lib.decoding.rows import Rows

if TYPE_CHECKING:
    from specdec_lib.decoding.call import Call

PRIOR_RATE, PRIOR_TESTS = 0.6, 4.0  # the acceptance of a row that has tested nothing, and how many tests it is worth
KEPT = 0.95  # share of what was counted that a step leaves, so that the estimate follows the text


class DraftLength:
    """A policy, and in a call what `start` returned: here gamma tokens in every row and step.

    Attributes:
        capturable: whether a captured step can follow it. Such a step always computes as many places.
        looks_at_logits: whether it needs the draft's logits, place by place.
    """

    capturable = True
    looks_at_logits = False

    def of_call(self, batch_size: int, num_draft_tokens: int) -> int:
        """Gamma of a whole call; 0 decodes as the baseline does."""
        return num_draft_tokens

    def start(self, call: Call) -> DraftLength:
        """The policy for one call."""
        return self

    def at_most(self, rows: Rows) -> torch.Tensor | None:  # [B]
        """How many tokens each row may draft in the step that begins; None for gamma."""
        return None

    def ends_before(self, logits: torch.Tensor) -> bool:  # [B, V]
        """Note the draft's logits of the next place; whether all drafts end before it."""
        return False

    def keep(self, probs: torch.Tensor) -> torch.Tensor:  # [B, V]
        """The draft's distributions at that place, zero for drafts that ended before it."""
        return probs


class ConfidentLength(DraftLength):
    """A draft ends where it is no longer likely to be accepted as a whole, by its own account.

    A token counts as likely as the draft's most likely one there, at temperature 1 and unfiltered. The product of these
    numbers must stay at `least` or above. llama.cpp's p-min and AdaEDL (arXiv 2410.18351) look at each place alone.
    """

    capturable = False
    looks_at_logits = True

    def __init__(self, least: float):
        self.least = least

    def start(self, call: Call) -> DraftLength:
        return _ConfidentInCall(self.least, call.host_may_branch)


class _ConfidentInCall(ConfidentLength):
    def __init__(self, least: float, host_may_branch: bool):
        super().__init__(least)
        self.host_may_branch = host_may_branch
        self.chance: torch.Tensor | float = 1.0  # [B], that the draft so far is accepted

    def at_most(self, rows: Rows) -> None:
        self.chance = 1.0

    def ends_before(self, logits: torch.Tensor) -> bool:
        logits = logits.float()
        self.chance = self.chance * (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).exp()
        return self.host_may_branch and bool((self.chance < self.least).all())

    def keep(self, probs: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.chance, torch.Tensor)
        return probs.masked_fill((self.chance < self.least)[:, None], 0)


class AcceptedLength(DraftLength):
    """The length that pays best at the acceptance of the row so far: Leviathan et al. 2022, Theorem 3.8, row by row.

    Args:
        cost: of a draft token, to draft and to verify it, over that of an ordinary step; such as c + (v(5) - v(1)) / 4
            in the report's table of costs.
    """

    capturable = False

    def __init__(self, cost: float):
        self.cost = cost

    def start(self, call: Call) -> DraftLength:
        return _AcceptedInCall(self.cost, call)


class _AcceptedInCall(AcceptedLength):
    def __init__(self, cost: float, call: Call):
        super().__init__(cost)
        lengths = torch.arange(call.num_draft_tokens + 1, dtype=torch.float64, device=call.rows.tokens.device)
        self.lengths, self.price = lengths, 1 + cost * lengths  # [gamma+1], in ordinary steps
        self.tested = torch.zeros(call.rows.batch_size, dtype=torch.float64, device=lengths.device)
        self.accepted = torch.zeros_like(self.tested)

    def at_most(self, rows: Rows) -> torch.Tensor:
        self.tested = KEPT * self.tested + rows.num_tested
        self.accepted = KEPT * self.accepted + (rows.num_emitted - 1).clamp(min=0).minimum(rows.num_tested)
        rate = (PRIOR_RATE * PRIOR_TESTS + self.accepted) / (PRIOR_TESTS + self.tested)
        emitted = (rate[:, None] ** self.lengths).cumsum(dim=1)  # [B, gamma+1], 1 + a + ... + a^g
        return (emitted / self.price).argmax(dim=1)


class BatchLength(DraftLength):
    """As many tokens as a budget allows all rows together; beyond it none, and the call decodes as the baseline does.

    A call with so many tokens, and nothing else: decided before a token is drawn.

    Args:
        budget: draft tokens of a step, over all rows.
    """

    def __init__(self, budget: float):
        self.budget = budget

    def of_call(self, batch_size: int, num_draft_tokens: int) -> int:
        return min(num_draft_tokens, int(self.budget // batch_size))


FIXED = DraftLength()
