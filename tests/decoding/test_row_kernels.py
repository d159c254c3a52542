"""`CppOps` compute what `PlainOps` compute: probabilities, draws, verification, what is appended, and lookup."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import needs_kernels, save_head, seeded, tiny_llama

from specdec_lib import CompositeProposer, ModelProposer, NgramProposer, SamplingConfig, speculative_decode
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.ops import CppOps, PlainOps, choose_ops
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.verification import Verification
from specdec_lib.methods import RULES
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shipped_head import ShippedHead
from specdec_lib.models.toy import toy_model

CPP, PLAIN = CppOps(SamplingConfig()), PlainOps(SamplingConfig())
TOY = toy_model(16, seeded())


def distributions(*shape: int) -> torch.Tensor:
    """Peaked rows with many zeros, as sampling makes them."""
    logits = 4 * torch.randn(*shape, generator=seeded())
    return torch.softmax(logits.masked_fill(logits < 2, float("-inf")), dim=-1)


@needs_kernels
@pytest.mark.parametrize("temperature", [0.0, 1e-42, 1e-9, 0.7, 1.0])
def test_probabilities_are_those_of_pytorch(temperature):
    """Also where logits are equal or -inf, and in the last lanes of a vector; a NaN spoils its row and no other."""
    sampling = SamplingConfig(temperature=temperature)
    logits = 5 * torch.randn(2, 4, 1031, generator=seeded())
    logits[0, 1, 1000:] = 40.0
    logits[1, 2, 7:] = float("-inf")
    expected = PlainOps(sampling).probabilities(logits.double()).float()
    assert torch.allclose(CppOps(sampling).probabilities(logits), expected, rtol=1e-5, atol=1e-9)
    logits[0, 3, 1030] = float("nan")
    rows = CppOps(sampling).probabilities(logits).isnan()
    assert rows[0, 3].all()
    assert rows.sum() == 1031


@needs_kernels
@pytest.mark.parametrize("size", range(1024, 1041))
def test_a_row_of_nan_spoils_no_other_whatever_part_of_a_vector_its_end_fills(size):
    logits = torch.zeros(3, size)
    logits[1], logits[0, -1] = float("nan"), 1.0
    for temperature in (0.0, 1.0):
        rows = CppOps(SamplingConfig(temperature)).probabilities(logits)
        assert rows[1].isnan().all()
        assert rows[::2].isfinite().all()
        assert rows[0].argmax() == size - 1


@needs_kernels
def test_tokens_are_drawn_as_in_pytorch():
    """Same numbers, same tokens; rounding could part them once in some 10^12 draws."""
    probs, uniforms = distributions(500, 3000), torch.rand(500, generator=seeded(1), dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53])
    assert torch.equal(CPP.invert(probs, uniforms), PLAIN.invert(probs, uniforms))
    assert (probs.gather(1, CPP.invert(probs, uniforms)[:, None]) > 0).all()
    assert CPP.invert(torch.zeros(1, 3000), uniforms[:1]).tolist() == [2999]


@needs_kernels
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_tokens_are_verified_as_in_pytorch(rule):
    """Two in 10^7 draws may differ by rounding."""
    target, draft = distributions(400, 4, 2003), distributions(500, 3, 2003)[100:]
    draft[:100] = 0.5 * draft[:100] + 0.5 * target[:100, :3]  # so that some are accepted
    tokens = draft.flatten(0, 1).multinomial(1, generator=seeded(2)).view(400, 3)
    target[100:150, :3] = draft[100:150]  # nothing is left of the target
    draft[150:200, 1:] = 0  # nothing was drafted
    uniforms = torch.rand(400, 4, generator=seeded(1), dtype=torch.float64)
    ours, theirs = (ops.verification(rule)(target, draft, tokens, uniforms) for ops in (CPP, PLAIN))
    assert set(ours.num_accepted.tolist()) == {0, 1, 2, 3}
    assert torch.equal(ours.num_accepted, theirs.num_accepted)
    assert torch.equal(ours.next_token, theirs.next_token)
    nothing = target[:, :1], draft[:, :0], tokens[:, :0], uniforms[:, -1:]
    ours, theirs = (ops.verification(rule)(*nothing) for ops in (CPP, PLAIN))
    assert torch.equal(ours.next_token, theirs.next_token)
    assert ours.num_accepted.tolist() == theirs.num_accepted.tolist() == [0] * 400


@needs_kernels
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_a_rule_without_a_kernel_of_its_own_verifies_in_pytorch(rule):
    target, draft, uniforms = (
        distributions(50, 4, 1031),
        distributions(50, 3, 1031),
        torch.rand(50, 4, generator=seeded(1), dtype=torch.float64),
    )
    tokens = draft.flatten(0, 1).multinomial(1, generator=seeded(2)).view(50, 3)
    plugin = replace(rule, kernel=None)
    ours, theirs = (ops.verification(plugin)(target, draft, tokens, uniforms) for ops in (CPP, PLAIN))
    assert torch.equal(ours.num_accepted, theirs.num_accepted)
    assert torch.equal(ours.next_token, theirs.next_token)


def rows_in_flight(gamma: int, stops: tuple[int, ...] = ()) -> tuple[Rows, Counters]:
    """Rows of which one is done, one is about to be, and the others have room."""
    rows = Rows(TOY, batch_size=5, capacity=32, width=gamma + 1, num_stops=len(stops))
    rows.fill([torch.arange(1, 3 + row) for row in range(5)], 9, stops)
    rows.lengths += torch.tensor([9, 8, 7, 0, 0])
    rows.done[0] = True
    return rows, Counters(gamma, torch.device("cpu"))


@needs_kernels
@pytest.mark.parametrize("stops", [(), (7,), (8, 7)])
@pytest.mark.parametrize("gamma", [0, 1, 4])
def test_a_step_appends_counts_and_reports_as_in_pytorch(gamma, stops):
    generator, different = seeded(gamma), set()
    for _ in range(40):
        draft_tokens = torch.randint(5, 12, (5, gamma), generator=generator)
        draft_probs = torch.rand(5, gamma, 1, generator=generator).round().expand(5, gamma, 16)  # half: nothing drafted
        accepted = torch.randint(gamma + 1, (5,), generator=generator).minimum(torch.tensor([gamma, 0, 1, 4, 4]))
        verification = Verification(accepted, torch.randint(5, 12, (5,), generator=generator))
        outcomes = []
        for ops in (CPP, PLAIN):
            rows, counters = rows_in_flight(gamma, stops)
            for _ in range(2):
                target_probs = torch.full((5, gamma + 1, 16), 0.5)
                ops.append(rows, counters, draft_tokens, draft_probs, target_probs, verification)
            counts = counters.counts if gamma else counters.counts[:0]
            tensors = rows.tokens, rows.lengths, rows.done, rows.num_emitted, counts, rows.report
            outcomes.append([tensor.tolist() for tensor in tensors])
        assert outcomes[0] == outcomes[1]
        different.add(str(outcomes))
    assert len(different) > 10


@needs_kernels
@pytest.mark.parametrize("ops", [CPP, PLAIN], ids=["C++", "plain"])
def test_a_nan_among_the_probabilities_of_a_step_is_reported(ops):
    tokens, accepted = torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    for of_draft, of_target in [(0.5, 0.5), (torch.nan, 0.5), (0.5, torch.nan)]:
        rows, counters = rows_in_flight(2)
        draft_probs, target_probs = torch.full((5, 2, 16), 0.5), torch.full((5, 3, 16), 0.5)
        draft_probs[3, 1], target_probs[4, 2] = of_draft, of_target
        ops.append(rows, counters, tokens, draft_probs, target_probs, Verification(accepted, accepted))
        assert rows.report[2] == rows.saw_nan == (of_draft + of_target != 1)


@needs_kernels
@pytest.mark.parametrize("accepted", [-1, 3])
def test_a_verification_that_accepts_more_than_was_drafted_is_refused(accepted):
    (rows, counters), tokens = rows_in_flight(2), torch.zeros(5, 2, dtype=torch.int64)
    verification = Verification(torch.full((5,), accepted), tokens[:, 0].clone())
    with pytest.raises(RuntimeError, match=f"{accepted} of 2 draft tokens cannot be accepted"):
        CPP.append(rows, counters, tokens, torch.zeros(5, 2, 16), torch.zeros(5, 3, 16), verification)


@needs_kernels
@pytest.mark.parametrize(("longest", "shortest"), [(3, 1), (5, 2), (1, 1)])
def test_the_text_is_searched_as_in_pytorch(longest, shortest):
    found = 0
    for seed in range(60):
        generator = seeded(seed)
        texts = [torch.randint(4, (number,), generator=generator) for number in (1, 2, 3, 9, 14)]
        rows = Rows(TOY, batch_size=5, capacity=32, width=5, num_stops=0)
        rows.fill(texts, 9, ())
        for row, text in zip(rows.tokens, texts, strict=True):  # what a rollback left there is not text
            row[len(text) :].random_(4, generator=generator)
        ours, theirs = (ops.copy_continuation(rows, longest, shortest, 4) for ops in (CPP, PLAIN))
        assert all(map(torch.equal, ours, theirs))
        found += ours[1].any(dim=-1).sum()
    assert 60 < found < 60 * 5 * 4


@needs_kernels
@pytest.mark.parametrize("sampling", [SamplingConfig(0), SamplingConfig()], ids=["greedy", "sampled"])
def test_whole_calls_give_the_same_tokens_and_counts(sampling, tmp_path):
    target = LanguageModel(
        tiny_llama(vocab_size=1100, initializer_range=0.2).bfloat16(), "large", feature_layers=(0, 1)
    )
    head = ShippedHead.load(save_head(tmp_path, target, torch.arange(1100)), target)
    prompts = [torch.tensor([5, 6, 7, 5, 6]), torch.arange(900, 912), torch.tensor([3])]
    assert isinstance(choose_ops(target, sampling), CppOps)
    for proposer in (ModelProposer(head), NgramProposer(), CompositeProposer(ModelProposer(head))):
        outcomes = []
        for ops in (CppOps(sampling), PlainOps(sampling)):
            options = {"max_new_tokens": 20, "sampling": sampling, "stop_token_ids": (17,), "ops": ops}
            result = speculative_decode(target, proposer, prompts, num_draft_tokens=3, generator=seeded(), **options)
            outcomes.append(([row.tolist() for row in result.tokens], result.drafted, result.accepted))
        assert outcomes[0] == outcomes[1]
        assert result.drafted > 0 or isinstance(proposer, NgramProposer)  # sampled text may repeat nothing


def test_toys_are_computed_by_pytorch():
    assert not isinstance(choose_ops(TOY, SamplingConfig()), CppOps)
