"""What generation would count, without generating: greedy steps exactly, samples by their law."""

import numpy as np
import pytest
import torch
from tiny_models import save_head, tiny_target

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import speculative_decode
from specdec_lib.exactness.adversaries import toy_pair
from specdec_lib.methods import make_proposer
from specdec_lib.models.pair import Pair, load_pair
from specdec_lib.models.shipped_head import ShippedHead
from specdec_lib.models.toy import toy_draft, toy_model
from specdec_lib.models.translation import Translation
from specdec_lib.params_files import load_params
from specdec_lib.study.offline import Reading, expected_counts, offline_acceptance, profile_prompts
from specdec_lib.study.prompt_file import Prompt

GREEDY, SAMPLED = SamplingConfig(temperature=0), SamplingConfig()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def toys(vocab_size=8):
    target = toy_model(vocab_size, seeded(1))
    return Pair("toys", target, toy_draft(target, seeded(2)), None, "target", "draft", files={})


def other_vocabulary():
    target, draft = toy_model(6, seeded(1)), toy_model(9, seeded(2))
    draft.translation = Translation.of([3, -1, 0, 8, -1, 5], [[3], [1, 2, 4], [0], [8], [7, 7], [5]])
    return Pair("other vocabulary", target, draft, None, "target", "draft", files={})


def with_head(tmp_path):
    target = tiny_target()
    head = ShippedHead.load(save_head(tmp_path / "head", target, torch.arange(0, 48, 2)), target)
    return Pair("head", target, head, None, "target", "head", files={})


def encoded(pair, count, seed=0):
    prompts = torch.randint(pair.target.vocab_size, (count, 5), generator=seeded(seed))
    return [(Prompt(str(number), "toy", ""), ids[: 2 + number % 4]) for number, ids in enumerate(prompts)]


@pytest.mark.parametrize("kind", ["toys", "other vocabulary", "head"])
@pytest.mark.parametrize("method", ["draft", "ngram", "composite"])
def test_greedy_steps_are_foretold_exactly(kind, method, tmp_path):
    pair = {"toys": toys, "other vocabulary": other_vocabulary, "head": lambda: with_head(tmp_path)}[kind]()
    prompts, new, gammas = encoded(pair, 6), 30, (1, 3)
    foretold = offline_acceptance(pair, [method], prompts, sampling=GREEDY, gammas=gammas, new_tokens=new)
    for gamma in gammas:
        result = speculative_decode(
            pair.target,
            make_proposer(method, pair),
            [ids for _, ids in prompts],
            max_new_tokens=new + 5,  # the last steps have room too
            num_draft_tokens=gamma,
            sampling=GREEDY,
        )
        places = new - max(gammas)  # where a step of any gamma may start
        for row in range(len(prompts)):
            starts = np.cumsum([1, *(tokens[row] for tokens in result.step_tokens)])
            steps = [tokens[row] for tokens in result.step_tokens if tokens[row]]
            here = [emitted for start, emitted in zip(starts, steps, strict=False) if start <= places]
            (line,) = [r for r in foretold if (r["prompt_id"], r["num_draft_tokens"]) == (str(row), gamma)]
            assert (line["steps"], line["tokens"]) == (len(here), sum(here))


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("kind", ["toys", "other vocabulary"])
def test_samples_accept_as_foretold(kind, rule):
    """Tokens of a pass, over 60 prompts of 64 tokens; five standard errors, so that it fails once in a million."""
    pair = toys() if kind == "toys" else other_vocabulary()
    prompts, options = encoded(pair, 60), {"sampling": SAMPLED, "generator": seeded(3)}
    foretold = offline_acceptance(pair, ["draft"], prompts, gammas=(3,), new_tokens=64, **options)
    prefix = "block_" if rule == "block" else ""
    expected = np.array([[line[f"{prefix}tokens"], line[f"{prefix}steps"]] for line in foretold])
    result = speculative_decode(
        pair.target,
        make_proposer("draft", pair),
        [ids for _, ids in prompts],
        max_new_tokens=64,
        num_draft_tokens=3,
        verification=rule,
        **options,
    )
    steps = np.array(
        [[row[place] for row in result.step_tokens[:14]] for place in range(len(prompts))]
    )  # none at an end
    difference = expected[:, 0].sum() / expected[:, 1].sum() - steps.mean()
    error = np.hypot(np.std(expected[:, 0] / expected[:, 1]), np.std(steps.mean(axis=1))) / np.sqrt(len(prompts))
    assert abs(difference) < 5 * error
    assert error < 0.08


def test_a_perfect_draft_is_always_accepted():
    target = toy_model(8, seeded(1))
    pair = Pair("same", target, toy_draft(target, seeded(2), noise=0.0), None, "target", "draft", files={})
    lines = offline_acceptance(
        pair, ["draft"], encoded(pair, 2), sampling=SAMPLED, gammas=(2,), generator=seeded(), new_tokens=20
    )
    for line in lines:
        assert line["tokens"] == pytest.approx(3 * line["steps"])
        assert line["accepted_by_position"] == pytest.approx(line["tested_by_position"])
        assert line["rejected_first"] == pytest.approx(0, abs=1e-5)


def test_a_coin_that_can_be_worked_out_by_hand():
    """Heads 3/4 by the target, 1/4 by the draft: a draft token is accepted with probability 1/4 + 1/4.

    Two coins: a rejected tail leaves heads to the residual and to the second candidate, which is always accepted.
    """
    tables = [torch.tensor(probs).log().expand(2, 2, 2).clone() for probs in ([0.75, 0.25], [0.25, 0.75])]
    pair = toy_pair("coin", *tables)
    prompts = [(Prompt(str(number), "coin", ""), torch.tensor([1])) for number in range(8)]
    lines = offline_acceptance(
        pair, ["draft"], prompts, sampling=SAMPLED, gammas=(2,), generator=seeded(), new_tokens=40
    )
    for line in lines:
        assert line["accepted_by_position"][0] == pytest.approx(line["tested_by_position"][0] / 2)
        assert line["saved_by_second"] == pytest.approx(line["rejected_first"])


def test_steps_of_a_text_that_can_be_worked_out_by_hand():
    """Ratios 1/2 at every place and gamma 1: half of the steps emit two tokens."""
    ratios = np.full((1, 40, 1), 0.5)
    counts = expected_counts(Reading(ratios, ratios, np.ones_like(ratios), np.zeros((1, 40)), np.zeros((1, 40))), 0, 1)
    assert counts["tokens"] / counts["steps"] == pytest.approx(1.5)
    assert counts["steps"] == pytest.approx(40 / 1.5, abs=1)
    assert counts["tested_by_position"] == pytest.approx([counts["steps"]])


def test_a_block_keeps_what_an_earlier_token_has_to_spare():
    """Ratios 2 then 1/2: token by token the surplus of the first is lost, so 1 and 1/2; in a block it stays: 1 and 1.

    Ratios 1/2 then 2: the first token decides by either rule.
    """
    for ratios, token, block in (([0.5, 2.0], [0.5, 0.5], [0.5, 0.5]), ([2.0, 0.5], [1, 0.5], [1, 1])):
        reading = np.array([[ratios]])
        counts = expected_counts(
            Reading(reading, np.minimum(reading, 1), np.ones_like(reading), np.zeros((1, 1)), np.zeros((1, 1))), 0, 2
        )
        assert counts["tokens"] == pytest.approx(1 + sum(token))
        assert counts["block_tokens"] == pytest.approx(1 + sum(block))


def test_the_profile_has_other_prompts_than_the_sweep():
    params = load_params("smoke")
    ids = {prompt.id for prompt, _ in profile_prompts(params, load_pair("toy"))}
    assert all(name.startswith("profile-") for name in ids)


def test_a_text_that_is_too_short_is_refused():
    pair = toys()
    with pytest.raises(ValueError, match="new_tokens is 4: give more than 5"):
        offline_acceptance(pair, ["draft"], encoded(pair, 1), sampling=GREEDY, gammas=(4,), new_tokens=4)
