"""What speculative decoding should gain: the formulas of Leviathan et al. 2022 (arXiv 2211.17192).

`acceptance_rate` is alpha, `num_draft_tokens` is gamma. `cost_ratio` is c, the time of one draft pass over the time of
one target pass. All results are dimensionless.
"""

from __future__ import annotations

from collections.abc import Sequence


def expected_tokens(acceptance_rate: float, num_draft_tokens: int) -> float:
    """Tokens emitted per target pass if every draft token is accepted with the same chance (eq. 1).

    Raises:
        ValueError: the acceptance rate lies outside 0..1, or gamma is negative.
    """
    if not 0 <= acceptance_rate <= 1:
        raise ValueError(f"acceptance_rate is {acceptance_rate}: it is a probability, give 0 to 1")
    if num_draft_tokens < 0:
        raise ValueError(f"num_draft_tokens is {num_draft_tokens}: give 0 for no speculation or a positive number")
    return sum(acceptance_rate**position for position in range(num_draft_tokens + 1))  # = (1 - a^(g+1)) / (1 - a)


def expected_tokens_by_position(acceptance_rates: Sequence[float]) -> float:
    """Tokens per target pass from the conditional acceptance rate of each position.

    Eq. 1 without its assumption that all positions are alike: 1 + a1 + a1 a2 + a1 a2 a3 + ...

    Args:
        acceptance_rates: for position 1..gamma, the chance of acceptance given that all before it were accepted.
    """
    tokens, still_accepted = 1.0, 1.0
    for rate in acceptance_rates:
        still_accepted *= rate
        tokens += still_accepted
    return tokens


def expected_tokens_of_two_chains(acceptance_rates: Sequence[float], saved: float) -> float:
    """Tokens per target pass with a second candidate at the first position, and a chain of as many tokens after each.

    Recursive rejection without replacement (SpecInfer, arXiv 2305.09781). Where the second candidate is accepted, the
    tokens after it are taken to be accepted as those after the first one are.

    Args:
        acceptance_rates: as of `expected_tokens_by_position`, of the first chain.
        saved: the chance that the second candidate is accepted, given that the first was rejected.
    """
    first, *later = acceptance_rates
    return expected_tokens_by_position(acceptance_rates) + (1 - first) * saved * expected_tokens_by_position(later)


def walltime_improvement(
    acceptance_rate: float, num_draft_tokens: int, cost_ratio: float, verification_cost: float = 1.0
) -> float:
    """Expected speedup in wall time (Theorem 3.8, where verifying gamma + 1 tokens costs as much as decoding one).

    Args:
        verification_cost: v(gamma + 1), what verifying does cost, over decoding one.

    Raises:
        ValueError: a ratio of costs is negative, or `expected_tokens` refuses its arguments.
    """
    if cost_ratio < 0 or verification_cost <= 0:
        raise ValueError(f"cost_ratio is {cost_ratio}, verification_cost {verification_cost}: give 0 or more")
    return expected_tokens(acceptance_rate, num_draft_tokens) / (verification_cost + num_draft_tokens * cost_ratio)
