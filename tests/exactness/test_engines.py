"""The battery on every way through the engine: as it is written, kernels, `torch.compile`, and replays."""

import copy
from dataclasses import replace

import pytest
import torch

from specdec_lib.decoding.captured_loop import DeviceUniforms
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.proposers.model import ModelProposer
from specdec_lib.decoding.proposers.ngram import NgramProposer
from specdec_lib.exactness import mutants
from specdec_lib.exactness.adversaries import (
    ENGINE_SETTINGS,
    ENGINES,
    FILTERS,
    PLAIN,
    PROMPTS,
    adversarial_pairs,
    engine_pairs,
    enumeration_line,
)
from specdec_lib.exactness.greedy import greedy_agreement
from specdec_lib.exactness.joint_law import decide, put_to_test
from specdec_lib.exactness.mutant_battery import LENGTH
from specdec_lib.exactness.subjects.in_process import engine_sampler
from specdec_lib.kernels import ops as kernels
from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.machine.environment import path_of
from specdec_lib.models.engines.inductor import InductorEngine
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.runner import LanguageModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what PyTorch deprecates


@pytest.fixture(scope="module", params=[pytest.param(e, marks=[pytest.mark.slow] * (e == "inductor")) for e in ENGINES])
def pair(request):
    """A tiny Llama and a draft on one engine; compiled once for all tests here."""
    if request.param == "kernels" and why_no_kernels():
        pytest.skip(why_no_kernels())
    (pair,) = engine_pairs("cpu", (request.param,))
    assert (pair.target.engine, pair.draft.engine) == (request.param,) * 2
    return pair


class LooksAhead(InductorEngine):
    """Layers with the bug that each token attends to one position too many: a rolled-back token, or zeros."""

    def run_layers(self, tokens, positions, mask, cache):
        mask = mask.roll(1, dims=-1).index_fill(-1, torch.tensor([0]), 0.0)
        return super().run_layers(tokens, positions, mask, cache)


class ForgetsPlaces(KernelEngine):
    """Kernels with the bug that the rotary embedding counts from a pass's first token, as if nothing came before."""

    def place(self, tokens, cache):
        positions = super().place(tokens, cache)
        return positions - positions[:, :1]


def with_a_bug(target):
    """The known-bad twin of a target on its engine; the law is still that of the sound one's weights."""
    twin = LanguageModel(target.model, target.name, compiled=target.compiled)
    if target.engine == "eager":
        return mutants.StaleTarget(target.model, target.name, compiled=False)
    twin.active_engine = copy.copy(target.active_engine)
    twin.active_engine.__class__ = LooksAhead if target.engine == "inductor" else ForgetsPlaces
    return twin


def baseline(target, proposer, prompts, *, num_draft_tokens, verification, **options):
    """Autoregressive decoding, asked as if it were speculation."""
    return autoregressive_decode(target, prompts, **options)


def rejected(target, proposer, law, decode=speculative_decode, sampling=FILTERS[1], verification="token"):
    options = {"num_draft_tokens": 2, "length": LENGTH, "batch_size": 3000}
    sample = engine_sampler(target, proposer, sampling=sampling, decode=decode, verification=verification, **options)
    tests, _ = put_to_test(sample, law, PROMPTS, sampling=sampling, length=LENGTH, samples=2000, seed=0)
    return decide(tests)["rejected"].any()


@pytest.mark.parametrize(("gamma", "sampling"), ENGINE_SETTINGS, ids=str)
def test_the_law_of_every_path_is_the_target_s_on_every_engine(pair, gamma, sampling):
    line = enumeration_line(pair, ModelProposer(pair.draft), PROMPTS, gamma, sampling)
    assert line["path"] == path_of(pair.target)
    assert line["paths"] > 100
    assert line["largest_error"] < line["tolerance"]
    assert line["unexplained"] == 0


def test_a_bug_of_the_engine_shows_in_the_enumerated_law(pair):
    twin = replace(pair, target=with_a_bug(pair.target))
    line = enumeration_line(twin, ModelProposer(pair.draft), PROMPTS, *ENGINE_SETTINGS[0])
    assert line["largest_error"] > 1e-3


@pytest.mark.parametrize("kernel", ["draw", "verify", "append"])
def test_a_bug_of_the_kernels_after_a_pass_shows_in_the_enumeration(pair, kernel, monkeypatch):
    """They are what enumerates on their engine, and on no other."""

    def draw(weights, uniforms, real=kernels.draw):
        return real(weights, uniforms * 0.9)

    def verify(target, draft, tokens, uniforms, real=kernels.verify):
        return real(target, draft, tokens, uniforms * 0.9)

    def append(state, draft_tokens, draft_probs, target_probs, num_accepted, next_token, real=kernels.append):
        wrong = (next_token + num_accepted) % target_probs.shape[-1]
        real(state, draft_tokens, draft_probs, target_probs, num_accepted, wrong)

    monkeypatch.setattr(kernels, kernel, locals()[kernel])
    line = enumeration_line(pair, ModelProposer(pair.draft), PROMPTS, *ENGINE_SETTINGS[0])
    assert (line["largest_error"] > 1e-3 or line["unexplained"] > 1e-3) == (pair.target.engine == "kernels")


def test_sampled_texts_follow_the_joint_law_on_every_engine_and_a_bug_of_the_engine_is_seen(pair):
    """A sound sampler fails with a chance of at most 1e-6; seeds are fixed."""
    target, draft = pair.target, pair.draft
    assert not rejected(target, ModelProposer(draft), target)
    assert not rejected(target, NgramProposer(), target)
    assert not rejected(target, None, target, baseline)
    assert rejected(with_a_bug(target), ModelProposer(draft), target)


def test_greedy_output_is_the_baseline_s_on_every_engine(pair):
    proposers = {"draft": ModelProposer(pair.draft)}
    table, _ = greedy_agreement(pair.target, proposers, PROMPTS, num_draft_tokens=(1, 3), max_new_tokens=40)
    assert (table["equal_rows"] == 3).all()


class Capturable:
    """A rule that is nothing but operators on tensors, so that its steps are captured."""

    capturable = True

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, *arguments, **options):
        return self.rule(*arguments, **options)


CAPTURED = [name for name, pair in adversarial_pairs().items() if ModelProposer(pair.draft).capturable]


@pytest.mark.parametrize("name", sorted({*CAPTURED} - {"draft equals target"}))  # done before any replay
def test_the_law_of_every_path_is_the_target_s_when_steps_are_replayed(name, recorder):
    pair = adversarial_pairs()[name]
    for gamma in (1, 2):
        line = enumeration_line(pair, ModelProposer(pair.draft), PROMPTS, gamma, FILTERS[1])
        assert line["largest_error"] < line["tolerance"]
        assert line["unexplained"] == 0
    assert line["path"] == "float64, eager, captured steps"
    assert recorder.replays > recorder.captures > 0


def count_on_the_host(monkeypatch):
    """The bug of captured steps: a number that Python keeps, here the draw, stays what it was at the capture."""

    def next_on_the_host(self):
        self.taken += 1
        return self.table[:, self.taken - 1]

    monkeypatch.setattr(DeviceUniforms, "next", next_on_the_host)


def test_a_replay_that_draws_the_same_numbers_again_is_seen_by_enumeration_and_joint_law(recorder, monkeypatch):
    pair = adversarial_pairs()["random"]
    count_on_the_host(monkeypatch)
    assert enumeration_line(pair, ModelProposer(pair.draft), PROMPTS, 1, PLAIN)["unexplained"] > 0.01
    assert rejected(pair.target, None, pair.target, baseline)


@pytest.mark.parametrize("method", ["autoregressive", "draft", "ngram"])
def test_replayed_steps_follow_the_joint_law(method, recorder):
    """A sound sampler fails with a chance of at most 1e-6; seeds are fixed."""
    pair = adversarial_pairs()["random"]
    decode = baseline if method == "autoregressive" else speculative_decode
    proposer = ModelProposer(pair.draft) if method == "draft" else NgramProposer()
    assert not rejected(pair.target, proposer, pair.target, decode)
    assert recorder.replays > 0


@pytest.mark.parametrize("name", [
    "no residual: resamples from the target", "residual not normalised", "bonus token from the draft",
    "tokens kept after the first rejection", "uniform and residual draw share a stream", "off-by-one target row",
    "one row's acceptance for the whole batch", "temperature on one side only",
])  # fmt: skip
def test_mutants_are_rejected_when_their_steps_are_replayed(name, recorder):
    pair = adversarial_pairs()["random"]
    system = mutants.systems(pair)[name]
    assert rejected(pair.target, system.proposer, pair.target, verification=Capturable(system.verification))
    assert pair.target.kept.failure is None
    assert recorder.replays > 0
