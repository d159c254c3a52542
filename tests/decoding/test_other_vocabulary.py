"""Drafting with another vocabulary than the target's: the target's law, and a draft that reads the right text."""

import pytest
import torch

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.composite import CompositeProposer
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.decoding.proposers.respelled import RespelledDrafting, TextDrafting
from specdec_lib.exactness.adversaries import FILTERS, PROMPTS, adversarial_pairs
from specdec_lib.exactness.enumeration import enumerate_output
from specdec_lib.exactness.joint_law import put_to_test
from specdec_lib.exactness.subjects.in_process import engine_sampler
from specdec_lib.exactness.target_law import target_law
from specdec_lib.models.toy import toy_model
from specdec_lib.models.translation import Translation

GREEDY = SamplingConfig(temperature=0)
PAIRS = {name: pair for name, pair in adversarial_pairs().items() if "vocabulary" in name}
V, V_DRAFT = 6, 9
SHARED = [3, -1, 0, 8, -1, 5]  # the draft's token_id of each of the target's tokens
SPELLED = [[3], [1, 2, 4], [0], [8], [7, 7], [5]]


def other_toys(seed=1, retokenise=None, sharpness=3.0):
    target = toy_model(V, torch.Generator().manual_seed(seed), sharpness=sharpness)
    draft = toy_model(V_DRAFT, torch.Generator().manual_seed(seed + 1))
    draft.translation = Translation.of(SHARED, SPELLED, retokenise)
    return target, draft


def read_back(draft_tokens):
    """Tokens that read as the draft's text; a spelling that is not whole ends it."""
    found, rest = [], list(draft_tokens)
    while rest:
        token = next((token for token, spelled in enumerate(SPELLED) if rest[: len(spelled)] == spelled), None)
        if token is None:
            return found
        found.append(token)
        rest = rest[len(SPELLED[token]) :]
    return found


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_law_of_every_path_is_the_target_s(name, verification, sampling):
    pair = PAIRS[name]
    for gamma in (1, 2) if sampling != FILTERS[0] else (1,):  # of all tokens there are too many paths
        found = enumerate_output(
            pair.target,
            ModelProposer(pair.draft),
            PROMPTS,
            max_new_tokens=gamma + 2,
            num_draft_tokens=gamma,
            sampling=sampling,
            verification=verification,
        )
        laws = [target_law(pair.target, prompt, sampling, gamma + 2) for prompt in PROMPTS]
        assert found.error(laws) < 1e-12
        assert found.unexplained == 0


@pytest.mark.parametrize("retokenise", [None, read_back], ids=["tokens", "text"])
def test_samples_follow_the_target_s_law(retokenise):
    """The chance of a false alarm is below 1e-6 for each position; a missing renormalisation fails it."""
    target, draft = other_toys(retokenise=retokenise, sharpness=1.5)
    sampling, prompts = SamplingConfig(), [torch.tensor([1, 4]), torch.tensor([2])]
    options = {"num_draft_tokens": 2, "sampling": sampling, "length": 4, "batch_size": 2000}
    sample = engine_sampler(target, ModelProposer(draft), **options)
    tests, _ = put_to_test(sample, target, prompts, sampling=sampling, length=4, samples=8000, seed=0)
    assert (tests["p_value"] > 1e-6).all()


class Checking(Proposer):
    """Compares the cache that drafting starts from with a fresh reading of the row's whole text."""

    def __init__(self, draft):
        self.draft, self.checked, self.lengths = draft, 0, set()

    def start(self, call):
        kind = TextDrafting if self.draft.translation.retokenise else RespelledDrafting
        drafting = kind(self.draft, call, self.draft.translation)
        read = drafting._read_new_tokens

        def checked_read(rows):
            hidden = read(rows)
            for row in (~rows.done).nonzero()[:, 0].tolist():
                text = [t for token in rows.tokens[row, : int(rows.lengths[row])].tolist() for t in SPELLED[token]]
                ours = drafting.cache.layers[0].keys[row, 0, : len(text), 0]
                assert ours.tolist() == text
                self.checked += 1
                self.lengths.add(len(text) - int(rows.lengths[row]))
            return hidden

        drafting._read_new_tokens = checked_read
        return drafting


@pytest.mark.parametrize("retokenise", [None, read_back], ids=["tokens", "text"])
@pytest.mark.parametrize("composite", [False, True])
@pytest.mark.parametrize("gamma", [1, 3])
def test_the_draft_has_read_the_whole_text_in_its_own_tokens(gamma, composite, retokenise):
    target, draft = other_toys(retokenise=retokenise)
    prompts = [torch.tensor([1]), torch.tensor([4, 2, 1, 1, 4, 2]), torch.tensor([0, 3])]
    checking = Checking(draft)
    proposer = CompositeProposer(checking) if composite else checking
    options = {"max_new_tokens": 20, "sampling": GREEDY}
    expected = autoregressive_decode(target, prompts, **options)
    result = speculative_decode(target, proposer, prompts, num_draft_tokens=gamma, **options)
    assert [row.tolist() for row in result.tokens] == [row.tolist() for row in expected.tokens]
    assert checking.checked >= 8
    assert len(checking.lengths) >= 3  # rows whose text is longer by different numbers of tokens


def test_a_token_that_is_not_shared_is_emitted_but_never_drafted():
    target, draft = other_toys(sharpness=0.5)
    result = speculative_decode(
        target,
        ModelProposer(draft),
        [torch.tensor([0])] * 20,
        max_new_tokens=20,
        num_draft_tokens=2,
        sampling=SamplingConfig(),
        generator=torch.Generator().manual_seed(0),
    )
    emitted = torch.cat(result.tokens)
    assert (emitted == 1).any()
    assert (emitted == 4).any()
    assert 0 < result.accepted < result.drafted


def test_a_draft_that_agrees_on_shared_tokens_is_always_accepted():
    """The target has no chance for tokens 1 and 4, and the draft's table is the target's in other places."""
    target, draft = other_toys()
    target.model.table.data[..., [1, 4]] = -1e6
    shared = [place for place, token_id in enumerate(SHARED) if token_id >= 0]
    table = torch.full((V_DRAFT,) * 3, 0.0)
    ids = torch.tensor([SHARED[place] for place in shared])
    table[ids[:, None, None], ids[None, :, None], ids] = target.model.table.data[shared][:, shared][:, :, shared]
    draft.model.table.data = table
    result = speculative_decode(
        target,
        ModelProposer(draft),
        [torch.tensor([0, 2]), torch.tensor([3, 5, 0])],
        max_new_tokens=13,
        num_draft_tokens=3,
        sampling=SamplingConfig(),
        generator=torch.Generator().manual_seed(0),
    )
    assert result.acceptance_rate == 1.0


@pytest.mark.parametrize("retokenise", [None, read_back], ids=["tokens", "text"])
def test_a_row_does_not_depend_on_the_others(retokenise):
    target, draft = other_toys(retokenise=retokenise)
    prompts = [torch.tensor([1]), torch.tensor([4, 2, 1, 1, 4, 2, 5, 5, 1]), torch.tensor([0, 3])]
    options = {"max_new_tokens": 15, "num_draft_tokens": 3, "sampling": SamplingConfig()}

    def decode(*numbers):
        generator = torch.Generator().manual_seed(3)
        given = {"generator": generator, "row_numbers": numbers} | options
        return speculative_decode(target, ModelProposer(draft), [prompts[number] for number in numbers], **given).tokens

    together = decode(0, 1, 2)
    assert [row.tolist() for row in together] == [decode(number)[0].tolist() for number in range(3)]


def test_captured_steps_give_the_same_tokens(request):
    target, draft = other_toys()
    prompts = [torch.tensor([1]), torch.tensor([4, 2, 1, 1, 4, 2]), torch.tensor([0, 3])]
    options = {"max_new_tokens": 20, "num_draft_tokens": 3, "sampling": SamplingConfig()}

    def decode(proposer):
        generator = torch.Generator().manual_seed(0)
        result = speculative_decode(target, proposer, prompts, generator=generator, **options)
        return [row.tolist() for row in result.tokens]

    proposers = ModelProposer(draft), CompositeProposer(ModelProposer(draft))
    expected = [decode(proposer) for proposer in proposers]
    recorder = request.getfixturevalue("recorder")
    assert [decode(proposer) for proposer in proposers for _ in range(2)] == [e for e in expected for _ in range(2)]
    assert recorder.replays > 10


def test_text_is_not_drafted_in_a_captured_step():
    assert ModelProposer(other_toys()[1]).capturable
    assert not ModelProposer(other_toys(retokenise=read_back)[1]).capturable


def test_a_row_whose_text_takes_too_many_of_the_draft_s_tokens_drafts_nothing():
    """Token 1 takes three: after 64 of them there is no room. The next row drafts on."""
    target, draft = other_toys()
    target.model.table.data[..., 1] += 1e3 * (torch.arange(V) == 1).float()  # after a 1 comes a 1
    long, short = torch.ones(80, dtype=torch.int64), torch.tensor([0])
    options = {"max_new_tokens": 8, "num_draft_tokens": 2, "sampling": GREEDY}
    result = speculative_decode(target, ModelProposer(draft), [long, short], **options)
    alone = speculative_decode(target, ModelProposer(draft), [short], **options)
    assert result.drafted == alone.drafted > 0
    assert result.tokens[0].tolist() == [1] * 8


def test_nan_logits_of_a_draft_that_proposes_text_are_refused():
    target, draft = other_toys(retokenise=read_back)
    draft.model.table.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN at step 1"):
        speculative_decode(
            target, ModelProposer(draft), [torch.tensor([0])], max_new_tokens=5, num_draft_tokens=2, sampling=GREEDY
        )
