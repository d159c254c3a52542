"""Drafts whose length adapts: exact on every path, shorter where they should be, and the same in any batch."""

import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.draft_length import AcceptedLength, BatchLength, ConfidentLength
from specdec_lib.decoding.proposers.composite import CompositeProposer
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.exactness.adversaries import PROMPTS, adversarial_pairs, enumeration_line
from specdec_lib.exactness.mutants import ChoosyProposer
from specdec_lib.methods import RULES, length_label, make_draft_length
from specdec_lib.models.toy import toy_draft, toy_model

PAIRS = adversarial_pairs()
TARGET = toy_model(16, torch.Generator().manual_seed(0))
DRAFT = toy_draft(TARGET, torch.Generator().manual_seed(1))
TEXTS = [torch.tensor([1, 2, 3]), torch.tensor([5]), torch.tensor([7, 7, 1, 2, 7, 7]), torch.tensor([5])]
ADAPTIVE = ["confidence:0.3", "confidence:0.6", "acceptance:0.1", "acceptance:0.3"]


def decode(length, rows=range(4), temperature=1.0, proposer=None, gamma=4, **more):
    options = {"max_new_tokens": 40, "sampling": SamplingConfig(temperature, top_p=0.95), "row_numbers": list(rows)}
    options |= {"generator": torch.Generator().manual_seed(3), "draft_length": length} | more
    proposer = proposer or ModelProposer(DRAFT)
    return speculative_decode(TARGET, proposer, [TEXTS[row] for row in rows], num_draft_tokens=gamma, **options)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["random", "draft equals target", "zero-probability tokens", "near-ties"])
@pytest.mark.parametrize("length", ["confidence:0.6", "acceptance:0.3"])
def test_the_law_of_every_path_is_the_target_s(length, name, rule):
    pair, sampling = PAIRS[name], SamplingConfig(temperature=0.8, top_p=0.9)
    line = enumeration_line(pair, ModelProposer(pair.draft), PROMPTS, 2, sampling, rule, length)
    assert line["largest_error"] < 1e-12
    assert line["unexplained"] == 0


@pytest.mark.parametrize("rule", RULES)
def test_a_length_that_depends_on_the_token_drawn_is_not_exact(rule):
    pair = PAIRS["random"]
    line = enumeration_line(pair, ChoosyProposer(pair.draft), PROMPTS, 1, SamplingConfig(temperature=0.8), rule)
    assert line["largest_error"] > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("length", ADAPTIVE)
def test_a_row_gets_the_same_tokens_in_any_batch(length, temperature):
    for proposer in (ModelProposer(DRAFT), CompositeProposer(ModelProposer(DRAFT), NgramProposer())):
        whole = [row.tolist() for row in decode(length, temperature=temperature, proposer=proposer).tokens]
        for batch in ([2, 0], [3, 3, 1], [1]):
            found = decode(length, batch, temperature, proposer).tokens
            assert [row.tolist() for row in found] == [whole[row] for row in batch]
        if temperature == 0:
            options = {"max_new_tokens": 40, "sampling": SamplingConfig(0)}
            assert [row.tolist() for row in autoregressive_decode(TARGET, TEXTS, **options).tokens] == whole


@pytest.mark.parametrize("length", ADAPTIVE)
def test_shorter_drafts_waste_less(length):
    fixed, adaptive = decode("fixed"), decode(length)
    assert fixed.drafted == 4 * fixed.steps
    assert adaptive.drafted < fixed.drafted
    assert adaptive.draft_efficiency > fixed.draft_efficiency
    assert sum(adaptive.tested_by_position) <= adaptive.drafted


def width_of_passes(length, **more):
    """The most tokens that each pass of target and draft reads after the prompts, in the calls of one decoding."""
    widths = {"target": [], "draft": []}
    with pytest.MonkeyPatch.context() as patched:
        for name, model in (("target", TARGET), ("draft", DRAFT)):

            def counting(tokens, cache, counts=None, forward=model.forward, seen=widths[name]):
                seen.append(tokens.shape[1])
                return forward(tokens, cache, counts)

            patched.setattr(model, "forward", counting)
        result = decode(length, **more)
    return widths["target"][1:], widths["draft"][1:], result


def test_passes_are_as_wide_as_the_longest_draft_and_drafting_ends_with_it():
    target, draft, result = width_of_passes("confidence:0.6", rows=[0])
    assert len(set(target)) > 2
    assert sum(target) == len(result.step_s) + result.drafted
    fixed_target, fixed_draft, _ = width_of_passes("fixed", rows=[0])
    assert set(fixed_target) == {5}
    assert len(draft) / len(target) < len(fixed_draft) / len(fixed_target) == 4


def test_where_lookup_finds_nothing_the_target_reads_one_token():
    target, _, result = width_of_passes("fixed", rows=[1], proposer=NgramProposer())
    assert target[0] == 1
    assert sum(target) == len(result.step_s) + result.drafted < 5 * len(target)


def test_a_row_that_is_never_accepted_drafts_less_and_less():
    """And one that always is drafts all it may."""
    stranger = toy_model(16, torch.Generator().manual_seed(9))
    bad, good = (decode(AcceptedLength(0.2), proposer=ModelProposer(draft)) for draft in (stranger, TARGET))
    assert bad.drafted / bad.steps < 1.5
    assert good.drafted / good.steps > 3


def test_certainty_is_never_cut_and_no_draft_is_sure_enough_for_the_strictest():
    assert decode(ConfidentLength(0.0)).drafted == decode("fixed").drafted
    strict = decode(ConfidentLength(1.0))
    assert strict.drafted == 0
    assert strict.steps == 4 * 39
    assert strict.acceptance_rate is None


def test_a_budget_for_the_batch_is_a_call_with_fewer_tokens_and_without_any_the_baseline():
    def tokens(result):
        return [row.tolist() for row in result.tokens]

    limited = decode("batch:8")
    assert tokens(limited) == tokens(decode("fixed", gamma=2))
    assert limited.drafted == 2 * limited.steps
    assert tokens(decode("batch:8", [0])) == tokens(decode("fixed", [0]))
    none = decode(BatchLength(3))
    options = {"max_new_tokens": 40, "sampling": SamplingConfig(1.0, top_p=0.95)}
    baseline = autoregressive_decode(TARGET, TEXTS, generator=torch.Generator().manual_seed(3), **options)
    assert tokens(none) == tokens(baseline)
    assert none.steps == 0


def test_lengths_have_names_for_params_and_for_readers():
    assert make_draft_length("confidence:0.4").least == 0.4
    assert length_label("confidence:0.4") == "while likely (0.4)"
    assert length_label("fixed") == "always γ"
    assert length_label("of a later version") == "of a later version"
    with pytest.raises(ValueError, match="unknown draft length 'short': choose one of fixed, confidence"):
        decode("short")


@pytest.mark.parametrize("length", ["fixed", "batch:8", "confidence:0.4", "acceptance:0.2"])
def test_where_steps_are_captured_the_tokens_are_the_same(length, request):
    """Lengths that a captured step cannot follow run step by step there."""
    expected = [row.tolist() for row in decode(length).tokens]
    recorder = request.getfixturevalue("recorder")
    try:
        assert [row.tolist() for row in decode(length).tokens] == expected
        assert (recorder.replays > 0) == make_draft_length(length).capturable
    finally:
        TARGET.kept = None
