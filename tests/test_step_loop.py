"""Steps as a GPU replays them, on a CPU: nothing but operators, that give the same tokens on other contents."""

import pytest
import torch
from test_draft_head import tiny_target
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding import step_loop
from specdec_lib.decoding.baseline import BaselineStep, autoregressive_decode
from specdec_lib.decoding.proposers import CompositeProposer, HeadProposer, ModelProposer, NgramProposer
from specdec_lib.decoding.speculative import SpeculativeStep, speculative_decode
from specdec_lib.decoding.state import DecodeState
from specdec_lib.decoding.streams import CountedStreams, RowStreams
from specdec_lib.decoding.verification import verify
from specdec_lib.distill.students import HeadStudent
from specdec_lib.measure.given_acceptance import GivenAcceptance
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.toy import toy_draft, toy_model

PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2]), torch.tensor([6, 5, 3, 5, 8, 9, 7, 9])]
OTHERS = [torch.tensor([2, 7]), torch.tensor([1, 8, 2, 8]), torch.tensor([1])]
SAMPLINGS = [SamplingConfig(0), SamplingConfig(), SamplingConfig(0.8, top_k=9, top_p=0.9)]


class Recorder(TorchDispatchMode):
    """Does on a CPU what `CudaGraphs` does on a GPU: records a step's operators, and runs them again without Python.

    Each runs on the very memory it ran on when it was recorded, and what Python decided then is decided for good.
    """

    def __init__(self):
        super().__init__()
        self.captures = self.replays = self.asked = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        written = [
            argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments
        ]
        for tensor in tree_leaves([arg for arg, changes in zip(args, written, strict=False) if changes]):
            self.before.setdefault(tensor.untyped_storage().data_ptr(), (tensor, tensor.untyped_storage().clone()))
        outputs = func(*args, **(kwargs or {}))
        if any(isinstance(output, bool | int | float) for output in tree_leaves(outputs)):
            raise RuntimeError(f"{func} waits for the device\nwhile a graph is captured")
        self.calls.append((func, args, kwargs or {}, tree_leaves(outputs)))
        return outputs

    def warm_up(self, step):
        step()

    def forget(self):
        pass

    def capture(self, step):
        self.calls, self.before = [], {}
        try:
            with self:
                step()
        finally:  # a capture runs nothing: put everything back
            for tensor, contents in self.before.values():
                tensor.untyped_storage().copy_(contents)
        self.captures += 1
        calls = self.calls

        def replay():
            self.replays += 1
            for func, args, kwargs, outputs in calls:
                for old, new in zip(outputs, tree_leaves(func(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)

        return replay

    def ask(self, report):
        self.asked += 1
        return report.clone().tolist


@pytest.fixture
def recorder(monkeypatch):
    """Every decoding in the test goes the way of a GPU, with a graph for each 8 positions."""
    recorder = Recorder()
    monkeypatch.setattr(step_loop, "CudaGraphs", lambda device: recorder)
    monkeypatch.setattr(step_loop, "_why_not", lambda target: getattr(target.kept, "failure", None))
    monkeypatch.setattr(step_loop, "BUCKET", 8)
    return recorder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HeadStudent(tiny_target().model, (0, 1), torch.arange(48)).draft.save(folder)
    return folder


def models(method, folder):
    """A target, and how to make a proposer for it; new ones for each call, so that nothing is kept from another."""
    if method == "head":
        target = tiny_target()
        head = DraftHead.load(folder, target)
        return target, lambda: HeadProposer(head)
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
    return (
        [row.tolist() for row in result.tokens],
        result.step_tokens,
        counted,
        options["generator"].get_state().tolist(),
        result,
    )


METHODS = ["autoregressive", "draft", "head", "ngram", "composite"]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize("method", METHODS)
def test_replayed_steps_give_what_the_same_steps_give_one_by_one(method, sampling, folder, request):
    target, make = models(method, folder)
    calls = [{"prompts": PROMPTS}, {"prompts": OTHERS, "new": 13}, {"prompts": PROMPTS, "stop_token_ids": (5,)}]
    expected = [decode(target, make(), sampling, **call)[:4] for call in calls]
    recorder = request.getfixturevalue("recorder")
    for call, right in zip(calls, expected, strict=True):
        assert decode(target, make(), sampling, **call)[:4] == right
    assert target.kept.failure is None
    assert 0 < recorder.captures < recorder.replays
    before = recorder.captures
    *_, again = decode(target, make(), sampling)
    assert recorder.captures == before  # what was captured serves later calls
    assert again.capture_s == 0


def test_a_given_acceptance_is_replayed_too(folder, request):
    target, make = models("draft", folder)
    expected = [decode(target, make(), SAMPLINGS[0], verification=GivenAcceptance([2, 0, 3]))[:4] for _ in range(2)]
    recorder = request.getfixturevalue("recorder")
    replayed = [decode(target, make(), SAMPLINGS[0], verification=GivenAcceptance([2, 0, 3]))[:4] for _ in range(2)]
    assert replayed == expected
    assert recorder.replays > 0


@pytest.mark.parametrize("method", ["autoregressive", "draft"])
def test_streams_that_are_given_go_on_after_a_replay_as_after_the_steps_themselves(method, folder, request):
    def two_calls():
        target, make = models(method, folder)
        streams = RowStreams(7, [4, 2, 0])
        return [decode(target, make(), SAMPLINGS[1], generator=streams)[0] for _ in range(2)], streams.passage

    expected = two_calls()
    recorder = request.getfixturevalue("recorder")
    assert two_calls() == expected
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

    capture_key = property(lambda self: "peeking")

    def propose(self, state, num_draft_tokens, sampling, generator):
        tokens, probs = super().propose(state, num_draft_tokens, sampling, generator)
        return (tokens, probs) if bool(probs.any()) else (tokens, probs * 1)


class Counting(NgramProposer):
    """Does more than its parent, and so is not captured: it has not said that it can be."""

    proposed = 0

    def propose(self, state, num_draft_tokens, sampling, generator):
        self.proposed += 1
        return super().propose(state, num_draft_tokens, sampling, generator)


def test_what_cannot_be_captured_runs_step_by_step_and_the_reason_is_kept(folder, recorder):
    target, _ = models("ngram", folder)
    peeking = decode(target, Peeking(), SAMPLINGS[1])
    assert step_loop.graph_facts(target) == "none: aten.is_nonzero.default waits for the device"
    assert recorder.captures == 0
    counting = Counting()
    counted = decode(target, counting, SAMPLINGS[1])
    assert counting.proposed == len(counted[-1].step_s)
    assert peeking[:4] == counted[:4]


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


def launches(proposer, sampling, target):
    """The operators of a step after the first, on tensors of a device of which no value can be read."""
    state = DecodeState(target, [torch.arange(5), torch.arange(3)], max_new_tokens=9, stop_token_ids=(4,), slack=4)
    streams = CountedStreams(2, 18, 4, torch.device("cpu"))  # no generator can be on "meta", but its numbers can
    streams.made, streams.place = streams.made.to("meta"), streams.place.to("meta")
    if proposer is None:
        step = BaselineStep(target, state, sampling, streams)
    else:
        step = SpeculativeStep(target, proposer, verify, state, 3, sampling, streams)
    with torch.inference_mode():
        step.start()
        step()
        with OnlyOperators() as operators:
            step()
    return operators.launches


@pytest.fixture(scope="module")
def nowhere(folder):
    """Models on the device "meta", whose tensors have a shape and no contents; to look at one is an error."""
    target = tiny_target()
    head = DraftHead.load(folder, target)
    draft = tiny_target()
    for model in (target, draft, head):
        model.to("meta")
    head._shared["embeddings"] = target.model.get_input_embeddings().weight
    head.share_output_rows()
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
        "head": lambda: HeadProposer(head),
        "ngram": NgramProposer,
        "composite": lambda: CompositeProposer(HeadProposer(head)),
    }
    count = launches(makers[method](), sampling, target)
    record_property("kernels", count)
    print(f"{method}: {count} kernels a step")
    assert count <= most


def test_a_step_that_looks_is_noticed(nowhere):
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        launches(Peeking(), SAMPLINGS[0], nowhere[0])
