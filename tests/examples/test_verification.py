"""The rule itself: Leviathan et al. 2022, Algorithm 1."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from specdec_lib.decoding.sampling import invert
from specdec_lib.decoding.verification import Verification, residual_probs, verify


def random_probs(*shape: int, seed: int) -> torch.Tensor:
    """Distributions over the last axis, some of their tokens impossible, the likeliest never (that would be NaN)."""
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2
    impossible = logits < logits.amax(dim=-1, keepdim=True) - 4
    return torch.softmax(logits.masked_fill(impossible, float("-inf")), dim=-1)


def random_numbers(batch: int, count: int, seed: int) -> torch.Tensor:
    return torch.rand(batch, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn_from(probs: torch.Tensor, seed: int) -> torch.Tensor:
    """One token from each distribution `[B, m, V]`."""
    return invert(probs, random_numbers(*probs.shape[:2], seed=seed))


sizes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 9), st.integers(0, 2**20))


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_a_draft_equal_to_the_target_is_accepted_whole(size):
    batch, gamma, vocab, seed = size
    target = random_probs(batch, gamma + 1, vocab, seed=seed)
    tokens, uniforms = drawn_from(target[:, :-1], seed), random_numbers(batch, gamma + 1, seed + 1)
    assert (verify(target, target[:, :-1], tokens, uniforms).num_accepted == gamma).all()


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_disjoint_supports_reject_everything_and_resample_from_the_target(size):
    batch, gamma, vocab, seed = size
    target = torch.cat([random_probs(batch, gamma + 1, vocab, seed=seed), torch.zeros(batch, gamma + 1, vocab)], -1)
    draft = torch.cat([torch.zeros(batch, gamma, vocab), random_probs(batch, gamma, vocab, seed=seed + 1)], -1)
    verdict = verify(target, draft, drawn_from(draft, seed), random_numbers(batch, gamma + 1, seed + 1))
    assert (verdict.num_accepted == 0).all()
    assert (verdict.next_token < vocab).all()
    assert torch.allclose(residual_probs(target, draft, verdict.num_accepted), target[:, 0])


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_a_step_emits_between_one_and_gamma_plus_one_possible_tokens(size):
    batch, gamma, vocab, seed = size
    target, draft = random_probs(batch, gamma + 1, vocab, seed=seed), random_probs(batch, gamma, vocab, seed=seed + 1)
    tokens = drawn_from(draft, seed)
    verdict = verify(target, draft, tokens, random_numbers(batch, gamma + 1, seed + 2))
    assert ((verdict.num_accepted >= 0) & (verdict.num_accepted <= gamma)).all()
    for row, (accepted, token) in enumerate(
        zip(verdict.num_accepted.tolist(), verdict.next_token.tolist(), strict=True)
    ):
        emitted = [*tokens[row, :accepted].tolist(), token]
        assert 1 <= len(emitted) <= gamma + 1
        assert all(target[row, position, token] > 0 for position, token in enumerate(emitted))


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_nothing_after_an_undrafted_position_is_accepted(size):
    """A ragged batch: each row drafts its own number of tokens, the rest of its draft rows are zero."""
    batch, gamma, vocab, seed = size
    target = random_probs(batch, gamma + 1, vocab, seed=seed)
    tokens = drawn_from(target[:, :-1], seed)
    room = torch.randint(gamma + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    draft = target[:, :-1] * (torch.arange(gamma) < room[:, None])[:, :, None]
    verdict = verify(target, draft, tokens, random_numbers(batch, gamma + 1, seed + 1))
    assert torch.equal(verdict.num_accepted, room)  # the draft equals the target wherever there is one
    assert torch.allclose(residual_probs(target, draft, room), target[torch.arange(batch), room])


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_rows_do_not_touch_each_other(size):
    """With the same numbers a row is decided alike alone and in a batch."""
    batch, gamma, vocab, seed = size
    target, draft = random_probs(batch, gamma + 1, vocab, seed=seed), random_probs(batch, gamma, vocab, seed=seed + 1)
    tokens, uniforms = drawn_from(draft, seed), random_numbers(batch, gamma + 1, seed + 2)
    whole = verify(target, draft, tokens, uniforms)
    for row in range(batch):
        one = slice(row, row + 1)
        alone = verify(target[one], draft[one], tokens[one], uniforms[one])
        assert (alone.num_accepted, alone.next_token) == (whole.num_accepted[row], whole.next_token[row])


def test_residual_is_the_normalised_positive_part():
    target = torch.tensor([[[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]])
    draft = torch.tensor([[[0.2, 0.4, 0.4]]])
    assert torch.allclose(residual_probs(target, draft, torch.tensor([0])), torch.tensor([[1.0, 0, 0]]))


def test_the_bonus_token_comes_from_the_last_target_row():
    target = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]])
    verdict = verify(target, target[:, :-1], torch.tensor([[1]]), random_numbers(1, 2, seed=0))
    assert verdict.num_accepted.tolist() == [1]
    assert verdict.next_token.tolist() == [2]


def test_a_zero_draft_row_means_nothing_was_drafted():
    target = random_probs(1, 3, 5, seed=3)
    draft = torch.zeros(1, 2, 5)
    verdict = verify(target, draft, torch.tensor([[1, 1]]), random_numbers(1, 3, seed=0))
    assert verdict.num_accepted.tolist() == [0]
    assert torch.allclose(residual_probs(target, draft, verdict.num_accepted), target[:, 0])


def first_token_p_value(rule) -> float:
    """Chi-square of the first emitted token against the target, draft and target far apart."""
    rows = 40_000
    target = torch.tensor([0.1, 0.6, 0.3]).expand(rows, 2, 3)
    draft = torch.tensor([0.6, 0.3, 0.1]).expand(rows, 1, 3)
    tokens = drawn_from(draft, seed=0)
    verdict = rule(target, draft, tokens, random_numbers(rows, 2, seed=1))
    first = torch.where(verdict.num_accepted > 0, tokens[:, 0], verdict.next_token)
    return stats.chisquare(torch.bincount(first, minlength=3), [4_000, 24_000, 12_000]).pvalue


def without_residual(target_probs, draft_probs, draft_tokens, uniforms):
    """A common mistake: after a rejection it draws from the target itself."""
    num_accepted, _ = verify(target_probs, draft_probs, draft_tokens, uniforms)
    row = torch.arange(len(num_accepted))
    return Verification(num_accepted, invert(target_probs[row, num_accepted], uniforms[:, -1]))


def test_the_emitted_token_follows_the_target_and_without_residual_it_does_not():
    """False-failure chance 1e-6, seed fixed; the wrong twin is 10 standard errors off and more."""
    assert first_token_p_value(verify) > 1e-6
    assert first_token_p_value(without_residual) < 1e-6
