"""The C++ kernels for the rows of a batch between passes, against plain PyTorch: draw, verify, append, search."""

from typing import NamedTuple

import pytest
import torch
from tiny_models import save_head, tiny_llama

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import CompositeProposer, HeadProposer, NgramProposer
from specdec_lib.decoding.sampling import invert, probabilities
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.state import DecodeState
from specdec_lib.decoding.verification import Verification, count_accepted, residual_probs
from specdec_lib.kernels import build, vocabulary
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.runner import LanguageModel

REASON = build.why_no_kernels()
needs_kernels = pytest.mark.skipif(REASON is not None, reason=f"no kernels: {REASON}")
PROMPTS = [torch.arange(3, 12), torch.tensor([9, 2]), torch.arange(80, 50, -1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def target():
    return LanguageModel(tiny_llama().bfloat16(), "kernels", feature_layers=(0, 1))


@needs_kernels
@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("gamma", [1, 4])
def test_greedy_speculation_equals_the_baseline_even_in_bfloat16(target, gamma, temperature, tmp_path):
    head = DraftHead.load(save_head(tmp_path, target, torch.arange(96)), target)
    assert head.fused is not None
    options = {"max_new_tokens": 24, "sampling": SamplingConfig(temperature=temperature)}
    baseline = autoregressive_decode(target, PROMPTS, generator=seeded(), **options)
    for proposer in (HeadProposer(head), NgramProposer()):
        result = speculative_decode(target, proposer, PROMPTS, num_draft_tokens=gamma, generator=seeded(), **options)
        assert result.new_tokens == 3 * 24
        if temperature == 0:
            assert [row.tolist() for row in result.tokens] == [row.tolist() for row in baseline.tokens]


def distributions(*shape: int) -> torch.Tensor:
    """Peaked rows with many zeros, as sampling makes them."""
    logits = 4 * torch.randn(*shape, generator=seeded())
    return torch.softmax(logits.masked_fill(logits < 2, float("-inf")), dim=-1)


@needs_kernels
def test_a_vocabulary_is_drawn_from_as_in_pytorch():
    """Same numbers, same tokens; rounding could part them once in some 10^12 draws."""
    probs, uniforms = distributions(500, 3000), torch.rand(500, generator=seeded(1), dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53])
    assert torch.equal(vocabulary.draw(probs, uniforms), invert(probs, uniforms))
    assert (probs.gather(1, vocabulary.draw(probs, uniforms)[:, None]) > 0).all()
    assert vocabulary.draw(torch.zeros(1, 3000), uniforms[:1]).tolist() == [2999]


@needs_kernels
def test_tokens_are_verified_as_in_pytorch():
    """Two in 10^7 draws may differ, where PyTorch rounds the residual once more to normalise it."""
    target, draft = distributions(400, 4, 2003), distributions(500, 3, 2003)[100:]
    draft[:100] = 0.5 * draft[:100] + 0.5 * target[:100, :3]  # so that some are accepted
    tokens = draft.flatten(0, 1).multinomial(1, generator=seeded(2)).view(400, 3)
    target[100:150, :3] = draft[100:150]  # nothing is left of the target
    draft[150:200, 1:] = 0  # nothing was drafted
    tests = torch.rand(400, 3, generator=seeded(1), dtype=torch.float64)
    numbers = torch.rand(400, generator=seeded(3), dtype=torch.float64)
    num_accepted, token = vocabulary.verify(target, draft, tokens, tests, numbers)
    assert set(num_accepted.tolist()) == {0, 1, 2, 3}
    assert torch.equal(num_accepted, count_accepted(target, draft, tokens, tests))
    assert torch.equal(token, invert(residual_probs(target, draft, num_accepted), numbers))


def rows_in_flight(gamma: int, stops: tuple[int, ...]) -> DecodeState:
    """Rows of which one is done, one is about to be, and the others have room."""
    prompts = [torch.arange(1, 3 + row) for row in range(5)]
    target = LanguageModel(tiny_llama(), "target")
    state = DecodeState(target, prompts, max_new_tokens=9, stop_token_ids=stops, slack=gamma + 1)
    state.lengths += torch.tensor([9, 8, 7, 0, 0])
    state.done[0] = True
    return state


@needs_kernels
@pytest.mark.parametrize("stops", [(), (7,), (8, 7)])
@pytest.mark.parametrize("gamma", [0, 1, 4])
def test_what_a_step_emits_and_counts_is_the_same_in_one_call(gamma, stops, monkeypatch):
    generator, outcomes = seeded(gamma), []
    steps = []
    for _ in range(40):
        drafted = torch.randint(5, 12, (5, gamma), generator=generator)
        chances = torch.rand(5, gamma, generator=generator).round(decimals=0)  # half of them were not drafted
        accepted = torch.randint(gamma + 1, (5,), generator=generator).minimum(torch.tensor([gamma, 0, 1, 4, 4]))
        accepted = torch.stack([accepted, accepted], dim=1)[:, 0]  # of a verifier of one's own: not contiguous
        probs = torch.full((5, gamma + 1, vocabulary.SMALLEST), 0.5)
        steps.append((drafted, chances, probs, Verification(accepted, torch.randint(5, 12, (5,), generator=generator))))
    for serves in (True, False):
        monkeypatch.setattr(vocabulary, "serves", lambda *_, serves=serves: serves)
        outcomes.append([])
        for step in steps:
            state = rows_in_flight(gamma, stops)
            for _ in range(2):
                state.commit(*step)
            rows = state.tokens, state.lengths, state.done, state.num_emitted, state.counts, state.report
            outcomes[-1].append([tensor.tolist() for tensor in rows])
    assert outcomes[0] == outcomes[1]
    assert len({str(outcome) for outcome in outcomes[0]}) > 10


@needs_kernels
def test_a_nan_among_the_probabilities_of_a_step_is_remembered_in_one_call_too():
    drafted, accepted = torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    chances, probs = torch.ones(5, 2), torch.full((5, 3, vocabulary.SMALLEST), 0.5)
    for place, row in [(chances, (3, 1)), (probs, (4, 2)), (None, None)]:
        state, told = rows_in_flight(2, ()), [chances.clone(), probs.clone()]
        if place is not None:
            told[place is probs][row] = torch.nan
        state.commit(drafted, *told, Verification(accepted, accepted))
        assert state.broken == (place is not None)
        if place is not None:
            with pytest.raises(ValueError, match="the logits hold NaN"):
                state.look()


@needs_kernels
@pytest.mark.parametrize(("longest", "shortest"), [(3, 1), (5, 2), (1, 1)])
def test_the_text_is_searched_as_in_pytorch(longest, shortest, monkeypatch):
    proposer, found = NgramProposer(longest, shortest), 0
    for seed in range(60):
        generator = seeded(seed)
        texts = [torch.randint(4, (number,), generator=generator) for number in (1, 2, 3, 9, 14)]
        target = LanguageModel(tiny_llama(), "target")
        state = DecodeState(target, texts, max_new_tokens=9, stop_token_ids=(), slack=5)
        for row, text in zip(state.tokens, texts, strict=True):  # what a rollback left behind is not text
            row[len(text) :].random_(4, generator=generator)
        proposals = []
        for available in (True, False):
            monkeypatch.setattr(vocabulary, "available", lambda *_, available=available: available)
            proposals.append(proposer.propose(state, 4, SamplingConfig(), seeded()))
        assert all(map(torch.equal, *proposals))
        found += proposals[0][1].any(dim=-1).sum()
    assert 60 < found < 60 * 5 * 4


@needs_kernels
@pytest.mark.parametrize("accepted", [-1, 3])
def test_neither_fewer_tokens_than_none_nor_more_than_were_drafted_can_be_accepted(accepted):
    state, two = rows_in_flight(2, ()), torch.zeros(5, 2, dtype=torch.int64)
    probs, verdict = torch.zeros(5, 3, vocabulary.SMALLEST), Verification(torch.full((5,), accepted), two[:, 0].clone())
    with pytest.raises(RuntimeError, match=f"{accepted} of 2 draft tokens cannot be accepted"):
        state.commit(two, two.float(), probs, verdict)


@needs_kernels
def test_a_verifier_of_one_s_own_may_count_in_32_bits_and_return_more():
    class Told(NamedTuple):
        next_token: torch.Tensor
        num_accepted: torch.Tensor
        reason: str

    state, drafted = rows_in_flight(2, ()), torch.full((5, 2), 6)
    told = Told(torch.full((5,), 7), torch.tensor([1, 0, 1, 1, 1], dtype=torch.int32), "told to")
    state.commit(drafted, drafted.float(), torch.zeros(5, 3, vocabulary.SMALLEST), told)
    assert state.tokens[4, 6:9].tolist() == [6, 7, 7]
    assert state.report.tolist() == [7, 13, 0, 0, 1, 2, 2, 2]


@needs_kernels
@pytest.mark.parametrize("sampling", [SamplingConfig(0), SamplingConfig()], ids=["greedy", "sampled"])
def test_decoding_a_large_vocabulary_gives_what_it_gives_without_kernels_for_it(sampling, tmp_path, monkeypatch):
    large = LanguageModel(tiny_llama(vocab_size=1100, initializer_range=0.2).bfloat16(), "large", feature_layers=(0, 1))
    head = DraftHead.load(save_head(tmp_path, large, torch.arange(1100)), large)
    texts = [torch.tensor([5, 6, 7, 5, 6]), torch.arange(900, 912), torch.tensor([3])]
    told = []
    for available in (True, False):
        if not available:
            monkeypatch.setattr(vocabulary, "available", lambda *_: False)
        for proposer in (HeadProposer(head), NgramProposer(), CompositeProposer(HeadProposer(head))):
            options = {"max_new_tokens": 20, "sampling": sampling, "stop_token_ids": (17,)}
            result = speculative_decode(large, proposer, texts, num_draft_tokens=3, generator=seeded(), **options)
            told.append(([row.tolist() for row in result.tokens], result.step_tokens, result.drafted, result.accepted))
    assert told[:3] == told[3:]
    assert all(drafted > 0 for *_, drafted, _ in told)


@needs_kernels
@pytest.mark.parametrize("temperature", [0.0, 1e-42, 1e-9, 0.7, 1.0])
def test_probabilities_are_those_of_pytorch(temperature):
    """Also where logits are equal or -inf, and in the last lanes of a vector; a NaN spoils its row and no other."""
    sampling = SamplingConfig(temperature=temperature)
    logits = 5 * torch.randn(2, 4, 1031, generator=seeded())
    logits[0, 1, 1000:] = 40.0
    logits[1, 2, 7:] = float("-inf")
    expected = probabilities(logits.double(), sampling).float()
    assert torch.allclose(probabilities(logits, sampling), expected, rtol=1e-5, atol=1e-9)
    logits[0, 3, 1030] = float("nan")
    rows = probabilities(logits, sampling).isnan()
    assert rows[0, 3].all()
    assert rows.sum() == 1031


@needs_kernels
@pytest.mark.parametrize("size", range(1024, 1041))
def test_a_row_of_nothing_but_nan_stays_a_row(size):
    """Whatever of a vector its end fills."""
    logits = torch.zeros(3, size)
    logits[1], logits[0, -1] = float("nan"), 1.0
    for temperature in (0.0, 1.0):
        rows = vocabulary.probabilities(logits, temperature)
        assert rows[1].isnan().all()
        assert rows[::2].isfinite().all()
        assert rows[0].argmax() == size - 1


def test_toys_and_other_types_are_drawn_from_by_pytorch():
    assert not vocabulary.serves(torch.zeros(2, 20))
    assert not vocabulary.serves(torch.zeros(2, 5000, dtype=torch.float64))
    assert not vocabulary.serves(torch.zeros(2, 5000), torch.zeros(2, 5000, dtype=torch.float64))
