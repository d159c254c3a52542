"""The battery on every way through the engine: as it is written, kernels, `torch.compile`, and steps replayed."""

import copy

import pytest
import torch
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.streams import CountedStreams

from specdec_lib.decoding.proposers import ModelProposer, NgramProposer
from specdec_lib.decoding.verification import verify
from specdec_lib.exactness import mutants
from specdec_lib.exactness.adversaries import FILTERS, PLAIN, PROMPTS, adversarial_pairs, enumeration_line
from specdec_lib.exactness.engines import ENGINES, SETTINGS, path_pairs
from specdec_lib.exactness.greedy import greedy_agreement
from specdec_lib.exactness.joint_law import decide, put_to_test
from specdec_lib.exactness.mutant_battery import LENGTH
from specdec_lib.exactness.subjects import engine_sampler
from specdec_lib.kernels import rows, vocabulary
from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.machine.engine_facts import path_of
from specdec_lib.models.engines.inductor import InductorEngine
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.runner import LanguageModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what PyTorch deprecates


@pytest.fixture(scope="module", params=[pytest.param(e, marks=[pytest.mark.slow] * (e == "inductor")) for e in ENGINES])
def pair(request):
    """A tiny Llama and a draft on one engine; compiled once for all tests here."""
    if request.param == "kernels" and why_no_kernels():
        pytest.skip(why_no_kernels())
    ((target, draft),) = path_pairs("cpu", (request.param,))
    assert (target.engine, draft.engine) == (request.param,) * 2
    return target, draft


class LooksAhead(InductorEngine):
    """Layers with the bug that a position more is attended to than there is: what a rollback left behind, or zeros."""

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


def rejected(target, proposer, law, decode=speculative_decode, sampling=FILTERS[1], verification=verify):
    options = {"num_draft_tokens": 2, "length": LENGTH, "batch_size": 3000}
    sample = engine_sampler(target, proposer, sampling=sampling, decode=decode, verification=verification, **options)
    tests, _ = put_to_test(sample, law, PROMPTS, sampling=sampling, length=LENGTH, samples=2000, seed=0)
    return decide(tests)["rejected"].any()


@pytest.mark.parametrize(("gamma", "sampling"), SETTINGS, ids=str)
def test_the_law_of_every_path_is_the_target_s_on_every_engine(pair, gamma, sampling):
    target, draft = pair
    line = enumeration_line(target, ModelProposer(draft), PROMPTS, gamma, sampling)
    assert line["path"] == path_of(target)
    assert line["paths"] > 100
    assert line["largest_error"] < line["tolerance"]
    assert line["unexplained"] == 0


def test_a_bug_of_the_engine_shows_in_the_enumerated_law(pair):
    target, draft = pair
    line = enumeration_line(with_a_bug(target), ModelProposer(draft), PROMPTS, *SETTINGS[0])
    assert line["largest_error"] > 1e-3


@pytest.mark.parametrize("kernel", ["draw", "verify", "commit"])
def test_a_bug_of_the_kernels_behind_a_pass_shows_in_the_enumeration(pair, kernel, monkeypatch):
    """They are what enumerates on their engine, and on no other."""

    def draw(weights, uniforms, real=vocabulary.draw):
        return real(weights, uniforms * 0.9)

    def verify(target, draft, tokens, tests, numbers, real=vocabulary.verify):
        return real(target, draft, tokens, tests * 0.9, numbers)

    def commit(rows, draft_tokens, chances, probs, num_accepted, next_token, real=rows.commit):
        real(rows, draft_tokens, chances, probs, num_accepted, (next_token + num_accepted) % probs.shape[-1])

    target, draft = pair
    monkeypatch.setattr(rows if kernel == "commit" else vocabulary, kernel, locals()[kernel])
    line = enumeration_line(target, ModelProposer(draft), PROMPTS, *SETTINGS[0])
    assert (line["largest_error"] > 1e-3 or line["unexplained"] > 1e-3) == (target.engine == "kernels")


def test_sampled_texts_follow_the_joint_law_on_every_engine_and_a_bug_of_the_engine_is_seen(pair):
    """A sound sampler fails with a chance of at most 1e-6; seeds are fixed."""
    target, draft = pair
    assert not rejected(target, ModelProposer(draft), target)
    assert not rejected(target, NgramProposer(), target)
    assert not rejected(target, None, target, baseline)
    assert rejected(with_a_bug(target), ModelProposer(draft), target)


def test_greedy_output_is_the_baseline_s_on_every_engine(pair):
    target, draft = pair
    table, _ = greedy_agreement(
        target, {"draft": ModelProposer(draft)}, PROMPTS, num_draft_tokens=(1, 3), max_new_tokens=40
    )
    assert (table["equal_rows"] == 3).all()


class Capturable:
    """A verifier of which only operators on tensors are to be expected, so that its steps are captured."""

    def __init__(self, verifier):
        self.verifier = verifier

    def __call__(self, *arguments):
        return self.verifier(*arguments)

    capture_key = property(lambda self: self.verifier)


@pytest.mark.parametrize("name", sorted(adversarial_pairs().keys() - {"draft equals target"}))  # done before any replay
def test_the_law_of_every_path_is_the_target_s_when_steps_are_replayed(name, recorder):
    target, proposer = adversarial_pairs()[name]
    for gamma in (1, 2):
        line = enumeration_line(target, proposer, PROMPTS, gamma, FILTERS[1])
        assert line["largest_error"] < line["tolerance"]
        assert line["unexplained"] == 0
    assert line["path"] == "float64, eager, captured steps"
    assert recorder.replays > recorder.captures > 0


def count_on_the_host(monkeypatch):
    """The bug of captured steps: a number that Python keeps, here the passage, stays what it was at the capture."""

    def take(self, count):
        self.taken += count
        return self.made[:, self.passage, self.taken - count : self.taken]

    monkeypatch.setattr(CountedStreams, "take", take)


def test_a_replay_that_draws_the_same_numbers_again_is_seen_by_enumeration_and_joint_law(recorder, monkeypatch):
    target, proposer = adversarial_pairs()["random"]
    count_on_the_host(monkeypatch)
    assert enumeration_line(target, proposer, PROMPTS, 1, PLAIN)["unexplained"] > 0.01
    assert rejected(target, None, target, baseline)


@pytest.mark.parametrize("method", ["autoregressive", "draft", "ngram"])
def test_replayed_steps_follow_the_joint_law(method, recorder):
    """A sound sampler fails with a chance of at most 1e-6; seeds are fixed."""
    target, draft = adversarial_pairs()["random"]
    decode = baseline if method == "autoregressive" else speculative_decode
    assert not rejected(target, draft if method == "draft" else NgramProposer(), target, decode)
    assert recorder.replays > 0


@pytest.mark.parametrize(
    "verifier",
    [
        mutants.without_residual, mutants.residual_not_normalised, mutants.bonus_from_draft,
        mutants.kept_after_rejection, mutants.one_stream, mutants.row_too_early, mutants.first_row_for_all,
    ],
)  # fmt: skip
def test_mutants_are_rejected_when_their_steps_are_replayed(verifier, recorder):
    target, proposer = adversarial_pairs()["random"]
    assert rejected(target, proposer, target, verification=Capturable(verifier))
    assert target.kept.failure is None
    assert recorder.replays > 0
