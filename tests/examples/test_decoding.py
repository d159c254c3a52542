"""Baseline and speculation on toys: what is emitted, when rows end, and what is counted."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.toy import ToyModel, toy_draft, toy_model

GREEDY = SamplingConfig(temperature=0)
PROMPTS = [torch.tensor([1, 2, 3]), torch.tensor([5]), torch.tensor([7, 7, 1, 2, 4, 6, 7])]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def target():
    return toy_model(16, seeded(0))


@pytest.fixture(scope="module")
def draft(target):
    return toy_draft(target, seeded(1))


def speculate(target, proposer, prompts=PROMPTS, gamma=4, new=20, sampling=GREEDY, **kwargs):
    options = {"max_new_tokens": new, "num_draft_tokens": gamma, "sampling": sampling, "generator": seeded(0)}
    return speculative_decode(target, proposer, prompts, **options | kwargs)


def decode(target, prompts=PROMPTS, new=20, sampling=GREEDY, **kwargs):
    options = {"max_new_tokens": new, "sampling": sampling, "generator": seeded(0)}
    return autoregressive_decode(target, prompts, **options | kwargs)


@pytest.mark.parametrize("gamma", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("method", ["draft", "ngram"])
def test_greedy_speculation_equals_the_greedy_baseline(target, draft, method, gamma):
    proposer = ModelProposer(draft) if method == "draft" else NgramProposer()
    expected, got = decode(target), speculate(target, proposer, gamma=gamma)
    assert [row.tolist() for row in got.tokens] == [row.tolist() for row in expected.tokens]
    assert 0 < got.accepted < got.drafted  # both branches ran


def test_a_row_in_a_ragged_batch_decodes_as_it_does_alone(target, draft):
    together = speculate(target, ModelProposer(draft)).tokens
    alone = [speculate(target, ModelProposer(draft), [prompt]).tokens[0] for prompt in PROMPTS]
    assert [row.tolist() for row in together] == [row.tolist() for row in alone]


@pytest.mark.parametrize("new", [1, 2, 3, 7])
@pytest.mark.parametrize("gamma", [1, 3, 8])
def test_every_row_gets_exactly_max_new_tokens(target, draft, gamma, new):
    result = speculate(target, ModelProposer(draft), gamma=gamma, new=new, sampling=SamplingConfig())
    assert [len(row) for row in result.tokens] == [new] * 3
    assert result.new_tokens == 3 + result.steps + result.accepted  # prefill, one per pass, accepted


def test_prompts_longer_than_a_prefill_chunk(target, draft, monkeypatch):
    expected = speculate(target, ModelProposer(draft)).tokens
    monkeypatch.setattr("specdec_lib.decoding.step.PREFILL_CHUNK", 2)
    chunked = speculate(target, ModelProposer(draft)).tokens
    assert [row.tolist() for row in chunked] == [row.tolist() for row in expected]


def test_prompts_may_be_lists_and_greedy_decoding_needs_no_generator(target, draft):
    lists = [prompt.tolist() for prompt in PROMPTS]
    options = {"max_new_tokens": 20, "sampling": GREEDY}
    baseline = autoregressive_decode(target, lists, **options)
    result = speculative_decode(target, ModelProposer(draft), lists, num_draft_tokens=4, **options)
    expected = [row.tolist() for row in decode(target).tokens]
    assert [row.tolist() for row in baseline.tokens] == [row.tolist() for row in result.tokens] == expected


def counting_model(vocab_size: int = 10):
    """A toy that counts: after token b comes b + 1."""
    table = torch.zeros(vocab_size, vocab_size, vocab_size)
    for last in range(vocab_size):
        table[:, last, (last + 1) % vocab_size] = 10.0
    return LanguageModel(ToyModel(table), "counter")


def test_a_stop_token_inside_an_accepted_run_cuts_the_row_there():
    model = counting_model()
    result = speculate(model, ModelProposer(model), [torch.tensor([0]), torch.tensor([6])], new=8, stop_token_ids=(4,))
    assert [row.tolist() for row in result.tokens] == [[1, 2, 3, 4], [7, 8, 9, 0, 1, 2, 3, 4]]
    baseline = decode(model, [torch.tensor([0]), torch.tensor([6])], new=8, stop_token_ids=(4,))
    assert [row.tolist() for row in baseline.tokens] == [row.tolist() for row in result.tokens]
    # Row 0: 1 by the prefill, then 2 3 4 accepted; the fourth draft token comes after the stop and is not counted.
    # Row 1: 8 9 0 1 and the bonus 2, then 3 accepted and 4 by the target (the draft leaves it room).
    assert result.accepted == 3 + 4 + 1
    assert result.acceptance_rate == 1
    assert result.steps == 3
    assert result.mean_acceptance_length == 10 / 3


def test_counters_of_a_draft_that_is_always_wrong():
    model = counting_model()
    wrong = counting_model()
    wrong.model.table.copy_(wrong.model.table.roll(1, dims=-1))
    result = speculate(model, ModelProposer(wrong), [torch.tensor([0])], gamma=3, new=5)
    assert result.tokens[0].tolist() == [1, 2, 3, 4, 5]
    assert (result.steps, result.accepted, result.tested) == (4, 0, 3)  # the last step had no room to draft
    assert result.tested_by_position == [3, 0, 0]
    assert result.drafted == 4 * 3  # also where the output had no room left
    assert result.mean_acceptance_length == 1


def test_rates_are_none_where_undefined(target):
    result = decode(target, new=3)
    assert (result.acceptance_rate, result.draft_efficiency, result.mean_acceptance_length) == (None, None, None)


def test_the_same_seed_gives_the_same_tokens_and_leaves_the_global_generator_alone(target, draft):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (speculate(target, ModelProposer(draft), sampling=SamplingConfig()).tokens for _ in range(2))
    assert [row.tolist() for row in first] == [row.tolist() for row in second]
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_tokens_are_ordinary_tensors_that_may_be_changed_and_trained_on(target):
    (row,) = decode(target, PROMPTS[:1]).tokens
    row[0] = 3
    torch.nn.Embedding(16, 2)(row).sum().backward()


def test_a_draft_with_a_padded_vocabulary_still_works(target):
    wider = toy_draft(toy_model(20, seeded(4)), seeded(5))
    narrower = toy_model(16, seeded(6))
    for model, other in ((target, wider), (wider, narrower)):
        got = speculate(model, ModelProposer(other), PROMPTS)
        assert [row.tolist() for row in got.tokens] == [row.tolist() for row in decode(model).tokens]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0}, "num_draft_tokens is 0"),
        ({"new": 0}, "max_new_tokens is 0"),
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": [torch.tensor([], dtype=torch.int64)]}, "prompt 0 is empty"),
        ({"prompts": [torch.tensor([99])]}, "outside 0..15"),
        ({"prompts": [torch.tensor([1.0])]}, "1-D int64"),
        ({"prompts": [[1, 2.5]]}, "prompt 0 is list"),
        ({"prompts": ["text"]}, "prompt 0 is str"),
        ({"generator": None, "sampling": SamplingConfig()}, "generator is missing"),
        ({"row_numbers": [1]}, "1 row_numbers for 3 prompts"),
        ({"prompts": torch.tensor([[1, 2]])}, "prompts is a Tensor: give a list with the token ids"),
        ({"stop_token_ids": 2}, "stop_token_ids is 2: give a tuple"),
        ({"stop_token_ids": (None,)}, "give a tuple of token ids"),
        ({"new": 5000}, "exceed the context of toy-target"),
        ({"verification": "tokens"}, "unknown verification"),
    ],
)
def test_bad_input_is_refused_in_one_line(target, draft, change, message):
    with pytest.raises(ValueError, match=message) as refusal:
        speculate(target, ModelProposer(draft), **change)
    assert "\n" not in str(refusal.value)


def test_nan_logits_of_the_draft_are_refused_too(target):
    broken = toy_draft(target, seeded(1))
    broken.model.table.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN at step 1"):
        speculate(target, ModelProposer(broken))


def test_a_draft_with_a_shorter_context_is_refused(target):
    short = toy_model(16, seeded(0), name="short")
    short.context_length = 10
    with pytest.raises(ValueError, match="exceed the context of short"):
        speculate(target, ModelProposer(short))


@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_logits_are_refused_with_the_step(target, draft, temperature):
    model = counting_model()
    model.model.table[:, 5] = float("nan")
    sampling = SamplingConfig(temperature=temperature)
    with pytest.raises(ValueError, match="NaN at step 4"):
        decode(model, [torch.tensor([1])], sampling=sampling)
    with pytest.raises(ValueError, match="NaN at step 0"):
        speculate(model, NgramProposer(), [torch.tensor([5])], sampling=sampling)


class Operators(TorchDispatchMode):
    """Counts the operators that reach the device, and those that make the host wait for it."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "item")

    def __init__(self):
        super().__init__()
        self.launched, self.waited = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        self.launched += alias is None or alias.is_write  # a view launches nothing
        name = func.overloadpacket.__name__
        self.waited += [name] if name in self.WAITING else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(("method", "most"), [("draft", 250), ("ngram", 170)])
def test_a_step_waits_for_the_device_only_at_its_stop_test(target, draft, method, most, temperature):
    """Twice as many steps wait no more often; the stop test itself reads one small tensor (`Progress.read`)."""
    counts = []
    for new in (10, 20):
        proposer = ModelProposer(draft) if method == "draft" else NgramProposer()
        with Operators() as operators:
            result = speculate(target, proposer, gamma=4, new=new, sampling=SamplingConfig(temperature=temperature))
        counts.append((len(operators.waited), operators.launched, len(result.step_s)))
    (waited, launched, steps), (waited_twice, launched_twice, more_steps) = counts
    assert waited_twice == waited
    assert (launched_twice - launched) / (more_steps - steps) <= most  # the toys' own operators among them


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("method", ["draft", "ngram"])
def test_the_host_reads_a_tensor_once_a_step(target, draft, method, temperature, monkeypatch):
    """On a CPU reading a tensor is no operator, so the readings themselves are counted.

    There the host may also look at how long drafts are, which costs nothing; elsewhere it must not.
    """
    monkeypatch.setattr(Call, "host_may_branch", False)
    reads = []
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *args, _n=name, _r=read, **kw: reads.append(_n) or _r(*args, **kw)
        )
    counts = []
    for new in (10, 20):
        reads.clear()
        proposer = ModelProposer(draft) if method == "draft" else NgramProposer()
        result = speculate(target, proposer, gamma=4, new=new, sampling=SamplingConfig(temperature=temperature))
        counts.append((len(reads), len(result.step_s)))
    (few, steps), (many, more_steps) = counts
    assert many - few == more_steps - steps  # what is read before and after the loop does not depend on its length
