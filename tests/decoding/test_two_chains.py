"""Two candidates for the first position: the target's law, more tokens of a pass, and a mask that hides a chain."""

import pytest
import torch
from tiny_models import needs_kernels, save_head, tiny_llama, tiny_target

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.two_chains import TwoChainsProposer
from specdec_lib.decoding.verification.two_chains import choose_chain
from specdec_lib.exactness.adversaries import FILTERS, PROMPTS, adversarial_pairs, enumeration_line, layered_pair
from specdec_lib.exactness.chain_mutants import second_against_the_target, second_as_if_replaced
from specdec_lib.models.cache import Fork
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shipped_head import ShippedHead
from specdec_lib.models.toy import toy_draft, toy_model

PAIRS = {name: pair for name, pair in adversarial_pairs().items() if "other vocabulary" not in name}
RAGGED = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2]), torch.tensor([6, 5, 3, 5, 8, 9, 7, 9])]
SAMPLINGS = [SamplingConfig(0), SamplingConfig(), SamplingConfig(0.8, top_k=9, top_p=0.9)]


@pytest.mark.parametrize("name", PAIRS)
def test_the_law_of_every_path_is_the_target_s(name):
    proposer = TwoChainsProposer(PAIRS[name].draft)
    for gamma, sampling in ((1, FILTERS[0]), (2, FILTERS[2])):
        line = enumeration_line(PAIRS[name], proposer, PROMPTS, gamma, sampling)
        assert line["largest_error"] < 1e-12
        assert line["unexplained"] == 0


def test_it_is_exact_with_block_verification_of_the_chain():
    pair = PAIRS["random"]
    line = enumeration_line(pair, TwoChainsProposer(pair.draft), PROMPTS[:1], 2, FILTERS[1], "block")
    assert line["largest_error"] < 1e-12
    assert line["unexplained"] == 0


def test_it_is_exact_with_attention():
    pair = layered_pair()
    line = enumeration_line(pair, TwoChainsProposer(pair.draft), PROMPTS[:2], 1, SamplingConfig(0.7, top_k=2))
    assert line["largest_error"] < 1e-12
    assert line["unexplained"] == 0


@pytest.mark.parametrize("choose", [second_against_the_target, second_as_if_replaced])
def test_its_mutants_are_biased(choose):
    pair = PAIRS["random"]
    line = enumeration_line(pair, TwoChainsProposer(pair.draft, choose), PROMPTS, 1, FILTERS[0])
    assert line["largest_error"] > 1e-3


def test_a_chain_by_hand():
    """Target 1/2, 1/2, 0 and draft 0, 1/2, 1/2: token 2 is rejected, and then token 0 is what the residual wants."""
    law, draft = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.5, 0.5]])
    others = torch.tensor([[0.0, 1.0, 0.0]])  # the draft without token 2
    target_probs = torch.stack([law, torch.eye(3)[:1], torch.eye(3)[1:2]], dim=1)  # after each candidate another law
    chain = choose_chain(
        target_probs, torch.stack([draft, others], dim=1), torch.tensor([[2, 1]]), torch.tensor([[0.5]])
    )
    assert chain.second.tolist() == [True]
    assert chain.tokens.tolist() == [[1]]
    assert chain.target_probs[0].tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_head(tmp_path_factory.mktemp("head"), tiny_target(), torch.arange(48))


def models(kind, folder):
    """A target, and what makes proposers of one chain and of two."""
    if kind == "head":
        target = tiny_target()
        draft = ShippedHead.load(folder, target)
    else:
        target = toy_model(16, torch.Generator().manual_seed(0))
        draft = toy_draft(target, torch.Generator().manual_seed(1))
    return target, ModelProposer(draft), TwoChainsProposer(draft)


def decode(target, proposer, sampling, prompts=RAGGED, **more):
    options = {"max_new_tokens": 20, "sampling": sampling, "generator": torch.Generator().manual_seed(3)} | more
    return speculative_decode(target, proposer, prompts, num_draft_tokens=3, **options)


def tokens(result):
    return [row.tolist() for row in result.tokens]


@pytest.mark.parametrize("kind", ["toy", "head"])
def test_greedy_tokens_are_the_baseline_s(kind, folder):
    target, _, two = models(kind, folder)
    expected = autoregressive_decode(target, RAGGED, max_new_tokens=20, sampling=SAMPLINGS[0])
    assert tokens(decode(target, two, SAMPLINGS[0])) == tokens(expected)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize("kind", ["toy", "head"])
def test_a_row_s_tokens_do_not_depend_on_the_other_rows(kind, sampling, folder):
    target, _, two = models(kind, folder)
    together = tokens(decode(target, two, sampling))
    for row, prompt in enumerate(RAGGED):
        alone = decode(target, two, sampling, [prompt], row_numbers=[row])
        assert tokens(alone) == [together[row]]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize("kind", ["toy", "head"])
def test_replayed_steps_give_what_the_same_steps_give_one_by_one(kind, sampling, folder, request):
    target, _, two = models(kind, folder)
    calls = [{}, {"prompts": [torch.tensor([2, 7]), *RAGGED[:2]]}, {"stop_token_ids": (5,)}]
    expected = [tokens(decode(target, two, sampling, **call)) for call in calls]
    recorder = request.getfixturevalue("recorder")
    target, _, two = models(kind, folder)
    assert [tokens(decode(target, two, sampling, **call)) for call in calls] == expected
    assert target.kept.failure is None
    assert 0 < recorder.captures < recorder.replays


def test_a_pass_yields_more_than_one_chain_of_as_many_tokens():
    target, one, two = models("toy", None)
    for sampling in SAMPLINGS[:2]:
        options = {"prompts": RAGGED * 20, "max_new_tokens": 60}
        single, double = (decode(target, proposer, sampling, **options) for proposer in (one, two))
        assert double.mean_acceptance_length > single.mean_acceptance_length
        assert double.drafted == 2 * 3 * double.steps


def test_the_second_chain_sees_what_it_would_see_alone_and_can_be_kept():
    """Every token of either chain in one pass has the states that it has where its chain alone follows the text."""
    target, text = LanguageModel(tiny_llama().double(), "tiny"), torch.tensor([[5, 3, 8], [7, 7, 1]])
    chains, length = torch.tensor([[[4, 2], [9, 6]], [[1, 5], [3, 3]]]), 2  # [B, 2, length]
    alone = []
    for chain in (0, 1):
        cache = target.new_cache(2, 16)
        alone.append(target.forward(torch.cat([text, chains[:, chain]], dim=1), cache).hidden)
    cache = target.new_cache(2, 16)
    target.forward(text[:, :-1], cache)
    cache.commit(2, at_most=2)
    with cache.forked(Fork(torch.full((2,), 3), length)):
        both = target.forward(torch.cat([text[:, -1:], chains.flatten(1)], dim=1), cache).hidden
        cache.keep_chain(torch.tensor([False, True]))  # the second one in the second row
    for chain, states in enumerate(alone):
        torch.testing.assert_close(both[:, 1 + 2 * chain : 3 + 2 * chain], states[:, 3:])
    cache.set_lengths(torch.full((2,), 5), 5)
    more = target.forward(torch.tensor([[2], [2]]), cache).hidden
    for row, chain in enumerate((0, 1)):
        fresh = target.new_cache(1, 16)
        whole = torch.cat([text[row], chains[row, chain], torch.tensor([2])])[None]
        torch.testing.assert_close(more[row], target.forward(whole, fresh).hidden[0, -1:])


def test_what_it_cannot_serve_is_refused_in_one_line():
    pair = adversarial_pairs()["other vocabulary"]
    with pytest.raises(ValueError, match=r"the target's tokens one after another: choose the method draft$"):
        decode(pair.target, TwoChainsProposer(pair.draft), SAMPLINGS[0], PROMPTS)
    target, _, two = models("toy", None)
    with pytest.raises(ValueError, match="choose the draft length fixed or batch"):
        decode(target, two, SAMPLINGS[0], draft_length="confidence:0.4")


@needs_kernels
def test_the_cpu_kernels_refuse_it():
    target = LanguageModel(tiny_llama().bfloat16(), "tiny")
    assert target.engine == "kernels"
    with pytest.raises(ValueError, match="two chains need a mask, which tiny, read by the engine kernels, has not"):
        decode(target, TwoChainsProposer(target), SAMPLINGS[0])
