"""Steps as a GPU replays them, on a CPU: nothing but operators, that give the same tokens on other contents."""

from collections import Counter

import pytest
import torch
from tiny_models import save_head, tiny_target
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding import captured_loop
from specdec_lib.decoding.call import Call
from specdec_lib.decoding.captured_loop import DeviceUniforms
from specdec_lib.decoding.counters import Counters
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.ops import PlainOps
from specdec_lib.decoding.proposers.composite import CompositeProposer
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramDrafting, NgramProposer
from specdec_lib.decoding.rows import Rows
from specdec_lib.decoding.step import BaselineStep, SpeculativeStep
from specdec_lib.decoding.uniforms import seeded_table
from specdec_lib.methods import RULES
from specdec_lib.models.shipped_head import ShippedHead
from specdec_lib.models.toy import toy_draft, toy_model
from specdec_lib.study.decode_cell import GivenAcceptance

PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2]), torch.tensor([6, 5, 3, 5, 8, 9, 7, 9])]
OTHERS = [torch.tensor([2, 7]), torch.tensor([1, 8, 2, 8]), torch.tensor([1])]
SAMPLINGS = [SamplingConfig(0), SamplingConfig(), SamplingConfig(0.8, top_k=9, top_p=0.9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_head(tmp_path_factory.mktemp("head"), tiny_target(), torch.arange(48))


def models(method, folder):
    """A target, and how to make a proposer for it; new ones for each call, so that nothing is kept from another."""
    if method == "head":
        target = tiny_target()
        head = ShippedHead.load(folder, target)
        return target, lambda: ModelProposer(head)
    target = toy_model(16, torch.Generator().manual_seed(0))
    draft = toy_draft(target, torch.Generator().manual_seed(1))
    makers = {
        "autoregressive": lambda: None,
        "draft": lambda: ModelProposer(draft),
        "ngram": NgramProposer,
        "composite": lambda: CompositeProposer(ModelProposer(draft)),
    }
    return target, makers[method]


def decode(target, proposer, sampling, prompts=PROMPTS, new=20, **more):
    options = {"max_new_tokens": new, "sampling": sampling, "generator": torch.Generator().manual_seed(3)} | more
    if proposer is None:
        result = autoregressive_decode(target, prompts, **options)
    else:
        result = speculative_decode(target, proposer, prompts, num_draft_tokens=3, **options)
    counted = (result.steps, result.drafted, result.tested_by_position, result.accepted_by_position)
    return [row.tolist() for row in result.tokens], result.step_tokens, counted, result


METHODS = ["autoregressive", "draft", "head", "ngram", "composite"]
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}  # behind item, is_nonzero, masks as indices
VIEWS = (
    "as_strided as_strided_ view _unsafe_view alias to empty empty_strided resize_ resolve_conj resolve_neg result_type"
)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize("method", METHODS)
def test_replayed_steps_give_what_the_same_steps_give_one_by_one(method, sampling, folder, request):
    target, make = models(method, folder)
    calls = [{"prompts": PROMPTS}, {"prompts": OTHERS, "new": 13}, {"prompts": PROMPTS, "stop_token_ids": (5,)}]
    expected = [decode(target, make(), sampling, **call)[:3] for call in calls]
    recorder = request.getfixturevalue("recorder")
    for call, right in zip(calls, expected, strict=True):
        assert decode(target, make(), sampling, **call)[:3] == right
    assert target.kept.failure is None
    assert 0 < recorder.captures < recorder.replays
    before = recorder.captures
    *_, again = decode(target, make(), sampling)
    assert recorder.captures == before  # what was captured serves later calls
    assert again.capture_s == 0


def test_another_draft_takes_the_place_of_the_one_before(folder, recorder):
    target, _ = models("draft", folder)
    drafts = [toy_draft(target, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for draft in (drafts[0], *drafts):
        for proposer in (ModelProposer(draft), None, CompositeProposer(ModelProposer(draft))):
            decode(target, proposer, SAMPLINGS[0])
        assert {model for role, model in target.kept.caches if role == "draft"} == {draft}
        assert len(target.kept.steps) == 3
    assert recorder.captures > 0


def test_a_given_acceptance_is_replayed_too(folder, request):
    target, make = models("draft", folder)
    expected = [decode(target, make(), SAMPLINGS[0], verification=GivenAcceptance((2, 0, 3)))[:3] for _ in range(2)]
    recorder = request.getfixturevalue("recorder")
    replayed = [decode(target, make(), SAMPLINGS[0], verification=GivenAcceptance((2, 0, 3)))[:3] for _ in range(2)]
    assert replayed == expected
    assert recorder.replays > 0


@pytest.mark.parametrize("method", ["autoregressive", "draft"])
def test_a_replay_finds_the_numbers_of_the_rows_that_are_named(method, folder, request):
    def call():
        target, make = models(method, folder)
        return decode(target, make(), SAMPLINGS[1], row_numbers=[4, 2, 0])[0]

    expected = call()
    recorder = request.getfixturevalue("recorder")
    assert call() == expected
    assert recorder.replays > 0


def test_the_host_hears_of_each_step_once_and_of_at_most_one_too_many(folder, recorder):
    """The baseline knows its end beforehand; speculation may have begun a step more, whose numbers are not drawn."""
    for method, too_many in (("autoregressive", 0), ("draft", 1)):
        target, make = models(method, folder)
        *_, result = decode(target, make(), SAMPLINGS[1])
        looks, recorder.asked = recorder.asked, 0
        eager = recorder.captures  # each graph's first step
        recorder.captures = 0
        assert len(result.step_s) <= looks + eager <= len(result.step_s) + too_many


class Peeking(NgramProposer):
    """Looks at a value in every step. Says that it can be captured, which is not so."""

    def start(self, call):
        return PeekingDrafting(self, call.ops)


class PeekingDrafting(NgramDrafting):
    def propose(self, rows, num_draft_tokens, uniforms):
        tokens, probs = super().propose(rows, num_draft_tokens, uniforms)
        return (tokens, probs) if bool(probs.any()) else (tokens, probs * 1)


class Counting(NgramProposer):
    """Counts its proposals in Python, and says that it cannot be captured."""

    capturable = False
    proposed = 0

    def start(self, call):
        return CountingDrafting(self, call.ops)


class CountingDrafting(NgramDrafting):
    def propose(self, rows, num_draft_tokens, uniforms):
        Counting.proposed += 1
        return super().propose(rows, num_draft_tokens, uniforms)


def test_what_cannot_be_captured_runs_step_by_step_and_the_reason_is_kept(folder, recorder):
    target, _ = models("ngram", folder)
    peeking = decode(target, Peeking(), SAMPLINGS[1])
    assert captured_loop.graph_facts(target) == "none: aten.is_nonzero.default waits for the device"
    assert recorder.captures == 0
    assert not target.kept.caches  # later calls have caches of their own
    counted = decode(target, Counting(), SAMPLINGS[1])
    assert Counting.proposed == len(counted[-1].step_s)
    assert peeking[:3] == counted[:3]


class OnlyOperators(TorchDispatchMode):
    """Refuses copies between devices, and counts what starts a kernel."""

    def __init__(self):
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, outputs)) if isinstance(t, torch.Tensor)]
        assert {t.device.type for t in tensors} <= {"meta"}, f"{func} mixes devices"
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        self.launches += alias is None or alias.is_write  # a view starts nothing
        return outputs


def step_of(target, proposer, prompts, sampling, new, stops=(), caches=None):
    """A step before it is started, over buffers that stay where they are; gamma 3."""
    gamma = 0 if proposer is None else 3
    rows = Rows(target, batch_size=len(prompts), capacity=64, width=gamma + 1, num_stops=len(stops))
    rows.fill(prompts, new, stops)
    uniforms = DeviceUniforms(len(prompts), 2 * new, gamma + 1, target.device)
    counters, ops = Counters(gamma, target.device), PlainOps(sampling)
    call = Call(target, sampling, gamma, ops, rows, counters, uniforms, caches)
    return BaselineStep(call) if proposer is None else SpeculativeStep(call, proposer, RULES["token"])


def launches(proposer, sampling, target):
    """The operators of a step after the first, on tensors of a device of which no value can be read."""
    with torch.inference_mode():
        step = step_of(target, proposer, [torch.arange(5), torch.arange(3)], sampling, new=9, stops=(4,))
        step.start()
        step()
        with OnlyOperators() as operators:
            step()
    return operators.launches


@pytest.fixture(scope="module")
def nowhere(folder):
    """Models on the device "meta", whose tensors have a shape and no contents; to look at one is an error."""
    target = tiny_target()
    head = ShippedHead.load(folder, target)
    draft = tiny_target()
    for model in (target, draft, head):
        model.to("meta")
    head.embeddings = target.model.get_input_embeddings().weight.detach()
    head.prepare()
    return target, draft, head


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize(
    ("method", "most"),
    [("autoregressive", 220), ("draft", 800), ("head", 520), ("ngram", 330), ("composite", 570)],
)
def test_a_step_looks_at_no_value_and_starts_so_many_kernels(method, most, sampling, nowhere, record_property):
    """gamma 3, target and draft model of three layers each; as it is, before anything is compiled."""
    target, draft, head = nowhere
    makers = {
        "autoregressive": lambda: None,
        "draft": lambda: ModelProposer(draft),
        "head": lambda: ModelProposer(head),
        "ngram": NgramProposer,
        "composite": lambda: CompositeProposer(ModelProposer(head)),
    }
    count = launches(makers[method](), sampling, target)
    record_property("kernels", count)
    print(f"{method}: {count} kernels a step")
    assert count <= most


def profiled(run):
    """What the profiler sees: how often a value is waited for, and the operators that would start a kernel each."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = profile.events()
    waits = sum(event.name in WAITS for event in events)
    innermost = [event.name for event in events if event.name.startswith("aten::") and not event.cpu_children]
    return waits, Counter(name for name in innermost if name.removeprefix("aten::") not in VIEWS.split())


@pytest.mark.parametrize(
    ("method", "most"), [("autoregressive", 41), ("draft", 147), ("head", 400), ("ngram", 105), ("composite", 183)]
)
def test_the_profiler_sees_no_step_wait_and_every_step_start_the_same_operators(method, most, folder):
    """On a CPU, over buffers that stay where they are, as steps are captured on a GPU; gamma 3, the head's target a
    Llama of three layers, the others' a toy. Bounds are some 5 % above what it is."""
    step = static_step(*models(method, folder))
    (waits, operators), again = profiled(step), profiled(step)
    assert waits == 0
    assert again == (0, operators)
    print(f"{method}: {sum(operators.values())} operators a step")
    assert sum(operators.values()) <= most


@torch.inference_mode()
def static_step(target, make):
    """A step after the first, over buffers that stay where they are."""
    step = step_of(target, make(), PROMPTS, SAMPLINGS[1], new=20, caches={})
    width = step.call.rows.width
    step.call.uniforms.refill(seeded_table(0, range(len(PROMPTS)), 39, width))
    step.start()

    @torch.inference_mode()
    def within_bounds():
        step.call.rows.max_length = 24
        step()

    within_bounds()
    return within_bounds


@pytest.mark.parametrize("method", METHODS)
def test_the_profiler_sees_a_whole_call_wait_as_often_however_many_steps_it_takes(method, folder, recorder):
    """The host reads reports alone. A call looks at the ids of its prompts and at its seed, both on the host."""
    target, make = models(method, folder)
    proposer, calls = make(), []
    decode(target, proposer, SAMPLINGS[1], new=30)  # captures
    for new in (30, 15):
        waits, _ = profiled(lambda: calls.append(decode(target, proposer, SAMPLINGS[1], new=new)[-1]))  # noqa: B023
        assert waits == 2 * len(PROMPTS) + 1
    assert len(calls[0].step_s) > len(calls[1].step_s)


def test_a_step_that_looks_is_noticed_by_the_profiler(folder):
    target, _ = models("ngram", folder)
    waits, _ = profiled(static_step(target, Peeking))
    assert waits == 1


def test_a_step_that_looks_is_noticed(nowhere):
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        launches(Peeking(), SAMPLINGS[0], nowhere[0])
