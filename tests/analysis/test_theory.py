"""The formulas of Leviathan et al. 2022 against the numbers printed there, and against simulation."""

import numpy as np
import pytest

from specdec_lib.analysis import theory


@pytest.mark.parametrize(
    "acceptance_rate, num_draft_tokens, cost_ratio, printed",
    [
        (0.75, 7, 0.02, 3.2),  # Table 4, T5-XXL with T5-small, English to German, T = 0
        (0.82, 7, 0.11, 2.5),  # the same with T5-large
    ],
)
def test_walltime_improvement_reproduces_table_4(acceptance_rate, num_draft_tokens, cost_ratio, printed):
    assert round(theory.walltime_improvement(acceptance_rate, num_draft_tokens, cost_ratio), 1) == printed


def test_a_bigram_draft_gains_a_quarter_at_gamma_3():
    """Section 4.2: a bigram draft costs nothing and is accepted with rate 0.2."""
    assert theory.walltime_improvement(0.2, 3, 0.0) == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize("acceptance_rate", [0.0, 0.3, 0.8, 0.999])
def test_expected_tokens_is_the_closed_form_of_equation_1(acceptance_rate):
    closed_form = (1 - acceptance_rate**6) / (1 - acceptance_rate)
    assert theory.expected_tokens(acceptance_rate, 5) == pytest.approx(closed_form)


def test_a_draft_that_is_always_accepted_yields_gamma_plus_one():
    assert theory.expected_tokens(1.0, 5) == 6


def test_equal_positions_reduce_to_equation_1():
    assert theory.expected_tokens_by_position([0.7] * 4) == pytest.approx(theory.expected_tokens(0.7, 4))


def test_expected_tokens_by_position_agrees_with_simulation():
    """200,000 simulated steps; the mean's standard error is below 0.004, so 0.02 is missed with chance under 1e-6."""
    rates = [0.9, 0.5, 0.7]
    accepted = np.cumprod(np.random.default_rng(0).random((200_000, 3)) < rates, axis=1).sum(axis=1)
    assert theory.expected_tokens_by_position(rates) == pytest.approx(1 + accepted.mean(), abs=0.02)


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.expected_tokens(1.1, 4),
        lambda: theory.expected_tokens(0.5, -1),
        lambda: theory.walltime_improvement(0.5, 4, -0.1),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ValueError, match="give 0"):
        call()
