"""The enumerated law: exact for the real code, off by what a bug costs, and honest about what it cannot explain."""

import pytest
import torch

from specdec_lib import methods
from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.verification import verify
from specdec_lib.exactness import mutants
from specdec_lib.exactness.adversaries import (
    FILTERS,
    PROMPTS,
    adversarial_pairs,
    enumeration_line,
    enumeration_table,
    toy_pair,
)
from specdec_lib.exactness.enumeration import enumerate_output
from specdec_lib.exactness.target_law import target_law, total_variation

PAIRS = adversarial_pairs()
TOLERANCE = 1e-12


def enumerate_pair(pair, method, gamma, sampling=FILTERS[0], verification="token"):
    options = {"max_new_tokens": gamma + 2, "num_draft_tokens": gamma, "sampling": sampling}
    proposer = methods.make_proposer(method, pair)
    found = enumerate_output(pair.target, proposer, PROMPTS, verification=verification, **options)
    return found, [target_law(pair.target, prompt, sampling, gamma + 2) for prompt in PROMPTS]


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
@pytest.mark.parametrize(
    ("name", "method"),  # of text there are too many paths: see test_other_vocabulary.py
    [*((name, "draft") for name in PAIRS if "text" not in name), ("random", "ngram"), ("random", "composite")],
)
def test_the_law_of_every_path_is_the_target_s(name, method, sampling):
    for gamma in (1, 2):
        found, laws = enumerate_pair(PAIRS[name], method, gamma, sampling)
        assert found.error(laws) < TOLERANCE
        assert found.unexplained == 0
        assert [sum(law.values()) for law in found.laws] == pytest.approx([1.0] * 3, abs=TOLERANCE)


@pytest.mark.parametrize("method", ["suffix", "suffix_or_draft"])
def test_a_lookup_that_finds_more_in_some_rows_than_in_others_is_exact(method):
    for gamma, sampling in ((1, FILTERS[0]), (3, FILTERS[1])):
        found, laws = enumerate_pair(PAIRS["random"], method, gamma, sampling)
        assert found.error(laws) < TOLERANCE
        assert found.unexplained == 0


def test_a_long_draft():
    pair, sampling = PAIRS["zero-probability tokens"], SamplingConfig(0.7, top_k=2, top_p=0.8)
    line = enumeration_line(pair, ModelProposer(pair.draft), PROMPTS[:1], 4, sampling)
    assert line["paths"] > 40
    assert line["largest_error"] < TOLERANCE
    assert line["unexplained"] == 0


def test_a_coin_that_can_be_worked_out_by_hand():
    """Heads 3/4 by the target, 1/4 by the draft. A rejected tail (3/4 * 2/3) is resampled from the target."""
    tables = [torch.tensor(probs, dtype=torch.float64).log().expand(2, 2, 2) for probs in ([0.75, 0.25], [0.25, 0.75])]
    coin = toy_pair("coin", *(table.clone() for table in tables))
    found = enumerate_output(
        coin.target,
        ModelProposer(coin.draft),
        [torch.tensor([1])],
        max_new_tokens=3,
        num_draft_tokens=1,
        sampling=SamplingConfig(),
        verification=mutants.without_residual,
    )
    heads = sum(mass for tokens, mass in found.laws[0].items() if tokens[1] == 0)
    assert heads == pytest.approx(0.25 + 0.75 * 2 / 3 * 0.75)


def test_a_number_used_twice_is_noticed():
    found, _ = enumerate_pair(PAIRS["random"], "draft", 2, verification=mutants.one_stream)
    assert found.unexplained > 0.1


def test_a_rule_that_hides_its_numbers_in_a_copy_is_noticed():
    def copying(target_probs, draft_probs, draft_tokens, uniforms, ops):
        return verify(target_probs, draft_probs, draft_tokens, uniforms.clone(), ops)

    found, _ = enumerate_pair(PAIRS["random"], "draft", 1, verification=copying)
    assert found.unexplained > 0.1


def test_a_sound_rule_with_numbers_in_an_order_of_its_own_is_explained():
    """It decides token i by number gamma - 1 - i, and looks at one of them twice."""

    def backwards(target_probs, draft_probs, draft_tokens, uniforms, ops):
        class Backwards:
            invert = ops.invert

            def accept(self, numbers, chance):
                places = range(numbers.shape[1])
                tests = [ops.accept(uniforms[:, len(places) - 1 - place], chance[:, place]) for place in places]
                again = ops.accept(uniforms[:, -2], chance[:, 0] / 2)  # implied by the first test
                return torch.stack([tests[0] | again, *tests[1:]], dim=1)

        return verify(target_probs, draft_probs, draft_tokens, uniforms, Backwards())

    found, laws = enumerate_pair(PAIRS["random"], "draft", 2, FILTERS[1], verification=backwards)
    assert found.error(laws) < TOLERANCE
    assert found.unexplained == 0


def test_a_method_registered_elsewhere_is_enumerated(monkeypatch):
    """Here one that drafts with the pair's draft; the same with a bug in what it reports is off."""
    misreporting = mutants.MisreportingProposer
    for name, make in {
        "mine": lambda pair: ModelProposer(pair.draft),
        "wrong": lambda pair: misreporting(pair.draft, mutants.probabilities, mutants._at_temperature_1),
    }.items():
        mine = methods.Method(name, name, "#000000", "x", make, (name,), capturable=True)
        monkeypatch.setitem(methods.METHODS, name, mine)
    table = enumeration_table(["mine", "wrong"], "token", "cpu", engines=(), settings=[(1, FILTERS[1])])
    off = table.groupby("method")["largest_error"].max()
    assert set(table["pair"]) == set(PAIRS)
    assert off["mine"] < TOLERANCE
    assert off["wrong"] > 1e-3


def test_total_variation():
    assert total_variation({(0,): 0.5, (1,): 0.5}, {(0,): 0.75, (2,): 0.25}) == pytest.approx(0.5)
