"""The C++ kernels against plain PyTorch: the same numbers, whatever is computed beside them."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from tiny_models import save_head, tiny_llama
from torch.utils import cpp_extension

from specdec_lib.config import SamplingConfig
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import CompositeProposer, HeadProposer, NgramProposer
from specdec_lib.decoding.sampling import invert, probabilities
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.state import DecodeState
from specdec_lib.decoding.verification import Verification, count_accepted, residual_probs
from specdec_lib.distill.students import layers_of_target
from specdec_lib.kernels import build, vocabulary
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.engines import kernels as fused
from specdec_lib.models.engines.kernel_head import EightBits
from specdec_lib.models.plain_draft import load_plain_draft
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import ModelShape

REASON = build.why_no_kernels()
needs_kernels = pytest.mark.skipif(REASON is not None, reason=f"no kernels: {REASON}")
PROMPTS = [torch.arange(3, 12), torch.tensor([9, 2]), torch.arange(80, 50, -1)]


@pytest.mark.skipif(
    build.instructions() is None or shutil.which(cpp_extension.get_cxx_compiler()) is None,
    reason="neither AVX-512 nor AVX2, or no C++ compiler",
)
def test_the_kernels_compile_where_they_can():
    """Else every other test of them would be skipped."""
    assert REASON is None


@pytest.mark.skipif(build.instructions() != "avx512", reason="the kernels for AVX2 are those that are tested anyway")
def test_the_kernels_for_avx2_compute_right_on_a_processor_with_avx512_too():
    """PyTorch's own variable limits both, in a process that has loaded neither."""
    tests = [sys.executable, "-m", "pytest", "-q", "-x", __file__]
    limited = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    run = subprocess.run(tests, check=False, env=limited, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("used", "has_bfloat16", "has_vnni", "expected"),
    [
        ("AVX512", True, True, "avx512"),
        ("AVX512", False, True, "avx2"),
        ("AVX512", True, False, "avx2"),
        ("AVX2", True, True, "avx2"),
        ("DEFAULT", True, True, None),
    ],
)
def test_the_kernels_use_the_best_that_the_processor_has_and_pytorch_uses(
    monkeypatch, used, has_bfloat16, has_vnni, expected
):
    monkeypatch.setattr(build.torch.backends.cpu, "get_cpu_capability", lambda: used)
    monkeypatch.setattr(build.torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(build.torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    assert build.instructions() == expected


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def target():
    return LanguageModel(tiny_llama().bfloat16(), "fused", feature_layers=(0, 1))


@needs_kernels
@pytest.mark.parametrize("rows", [*range(1, 14), 40])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 4), (32, 7), (576, 102), (1536, 64)])
def test_the_product_is_the_product(rows, inputs, outputs):
    x = torch.randn(rows, inputs, generator=seeded()).bfloat16()
    weight = torch.randn(outputs, inputs, generator=seeded(1)).bfloat16()
    assert torch.allclose(fused.linear(x, weight), x.float() @ weight.float().T, atol=1e-3)


def exact(short: EightBits) -> torch.Tensor:
    """What a weight of 8 bits stands for."""
    return short.numbers.float() * short.factors[:, None]


@needs_kernels
@pytest.mark.parametrize("rows", [*range(1, 14), 40])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 4), (32, 7), (576, 102), (1536, 64)])
def test_the_product_with_a_weight_of_8_bits_is_that_with_what_it_stands_for(rows, inputs, outputs):
    x = torch.randn(rows, inputs, generator=seeded()).bfloat16()
    weight = EightBits.of(torch.randn(outputs, inputs, generator=seeded(1)))
    expected, products = x.float() @ exact(weight).T, fused.linear(x, *weight)
    assert (products - expected).norm() < 1e-4 * expected.norm()
    assert torch.equal(products, torch.cat([fused.linear(row, *weight) for row in x.split(1)]))  # beside any others


@needs_kernels
def test_whole_numbers_of_long_rows_do_not_overflow_and_what_is_no_number_stays_in_its_row():
    x = torch.full((4, 32768), 3.0).bfloat16()
    x[1, 7], x[2, 7], x[3] = torch.nan, torch.inf, 0
    products = fused.linear(x, *EightBits.of(torch.ones(4, 32768)))
    assert torch.allclose(products[0], torch.tensor(3.0 * 32768))
    assert products[1:3].isnan().all()
    assert not products[3].any()


def test_8_bits_are_the_nearest_to_every_weight():
    weight = torch.randn(64, 96, generator=seeded()) * torch.logspace(-30, 3, 64)[:, None]
    weight[5] = 0
    numbers, factors = short = EightBits.of(weight.bfloat16())
    assert numbers.dtype == torch.int8
    assert numbers.abs().amax(dim=1).unique().tolist() == [0, 127]
    assert ((exact(short) - weight.bfloat16().float()).abs() <= factors[:, None] * 0.501).all()


HEADS = {  # of queries, of keys and values, and their size
    "two to a key": (4, 2, 32),
    "three to a key": (9, 3, 64),
    "all to one key, more than a tile": (8, 1, 96),
    "each its own, and wide": (2, 2, 320),
}


def with_heads(heads, keys, size):
    shape = {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": size}
    return tiny_llama(hidden_size=32 * heads, initializer_range=0.05, **shape).bfloat16()


@needs_kernels
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_layers_compute_what_the_model_computes_in_float32(heads):
    """bfloat16 inputs to each product, float32 between them: closer to float32 than the model in bfloat16."""
    exact = LanguageModel(with_heads(*heads).float(), "float32", feature_layers=(0, 1))
    eager = LanguageModel(with_heads(*heads), "eager", feature_layers=(0, 1), compiled=False)
    target = LanguageModel(with_heads(*heads), "fused", feature_layers=(0, 1))
    assert target.fused is not None
    tokens = torch.randint(96, (2, 40), generator=seeded())
    logits, features = [], []
    for model in (exact, eager, target):
        step = model.forward(tokens, model.new_cache(2, 40))
        logits.append(model.logits(step.hidden).float())
        features.append(step.features.float())
    assert (logits[2] - logits[0]).norm() < (logits[1] - logits[0]).norm()
    assert (features[2] - features[0]).norm() < 0.02 * features[0].norm()


@needs_kernels
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_a_row_does_not_depend_on_the_rows_beside_it(heads):
    """Verifying five tokens of three rows of unlike lengths gives the logits of decoding one by one, bit for bit.

    What a cache holds behind a row's last token is not looked at: here it would spoil everything.
    """
    target = LanguageModel(with_heads(*heads), "fused")
    lengths = torch.tensor([70, 3, 33])
    texts, tokens = (torch.randint(96, (3, number), generator=seeded()) for number in (70, 5))
    together, alone = target.new_cache(3, 75), [target.new_cache(1, 75) for _ in range(3)]
    for cache, rows, known in [(together, texts, lengths), *zip(alone, texts.split(1), lengths.split(1), strict=True)]:
        target.forward(rows, cache)
        cache.set_lengths(known, max_length=70)
        for layer in cache.layers:
            for row, length in enumerate(known):
                layer.keys[row, :, length:] = layer.values[row, :, length:] = torch.nan
    verified = target.logits(target.forward(tokens, together).hidden)
    assert verified.isfinite().all()
    for row, cache in enumerate(alone):
        for position in range(5):
            step = target.forward(tokens[row : row + 1, position : position + 1], cache)
            cache.commit(1, at_most=1)
            assert torch.equal(target.logits(step.hidden)[0, 0], verified[row, position])


@needs_kernels
@pytest.mark.parametrize("counts", [[70, 3, 0, 33], [5, 4, 3, 2]], ids=["row by row", "few tokens, at once"])
def test_prompts_are_read_without_their_padding_as_with_it(target, counts):
    tokens = torch.randint(96, (4, 70), generator=seeded())[:, : max(counts)]
    caches = [target.new_cache(4, 80) for _ in range(2)]
    padded, read = target.forward(tokens, caches[0]), target.forward(tokens, caches[1], torch.tensor(counts))
    for row, count in enumerate(counts):
        assert torch.equal(read.hidden[row, :count], padded.hidden[row, :count])
        assert torch.equal(read.features[row, :count], padded.features[row, :count])
        for ours, theirs in zip(caches[1].keys + caches[1].values, caches[0].keys + caches[0].values, strict=True):
            assert torch.equal(ours[row, :, :count], theirs[row, :, :count])
    left_out = not read.hidden[1, counts[1] :].any()
    assert left_out == (max(counts) == 70)


@needs_kernels
@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("gamma", [1, 4])
def test_greedy_speculation_equals_the_baseline_even_in_bfloat16(target, gamma, temperature, tmp_path):
    head = DraftHead.load(save_head(tmp_path, target, torch.arange(96)), target)
    assert head.fused is not None
    options = {"max_new_tokens": 24, "sampling": SamplingConfig(temperature=temperature)}
    baseline = autoregressive_decode(target, PROMPTS, generator=seeded(), **options)
    for proposer in (HeadProposer(head), NgramProposer()):
        result = speculative_decode(target, proposer, PROMPTS, num_draft_tokens=gamma, generator=seeded(), **options)
        assert result.new_tokens == 3 * 24
        if temperature == 0:
            assert [row.tolist() for row in result.tokens] == [row.tolist() for row in baseline.tokens]


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_changes_nothing(target, threads):
    tokens = torch.randint(96, (2, 20), generator=seeded())
    before = torch.get_num_threads()
    logits = []
    for count in (before, threads):
        torch.set_num_threads(count)
        logits.append(target.logits(target.forward(tokens, target.new_cache(2, 20)).hidden))
    torch.set_num_threads(before)
    assert torch.equal(*logits)


@needs_kernels
def test_what_the_kernels_cannot_multiply_is_refused():
    x = torch.ones(2, 48).bfloat16()
    with pytest.raises(RuntimeError, match="a multiple of 32"):
        fused.linear(x, torch.ones(8, 48).bfloat16())
    with pytest.raises(RuntimeError, match="not empty"):
        fused.linear(x[:0], torch.ones(8, 48).bfloat16())
    with pytest.raises(RuntimeError, match="weights of 8 bits, and no others, have factors"):
        fused.linear(x[:, :32].contiguous(), torch.ones(8, 32, dtype=torch.int8))
    with pytest.raises(RuntimeError, match="as many factors as rows"):
        fused.linear(x[:, :32].contiguous(), torch.ones(8, 32, dtype=torch.int8), torch.ones(7))


@needs_kernels
def test_a_head_drafts_alike_with_and_without_kernels(target, tmp_path):
    save_head(tmp_path, target, torch.arange(96))
    fast = DraftHead.load(tmp_path, target)
    slow = DraftHead.load(tmp_path, LanguageModel(target.model, "eager", compiled=False))
    features = torch.randn(2, 1, 192, generator=seeded()).bfloat16()
    tokens = torch.arange(12).view(2, 6)[:, 3:4]  # one column of a wider table, as in a batch's prefill
    outputs = [
        head.scores(head.forward(tokens, head.fuse(features), head.new_cache(2, 6))).float() for head in (fast, slow)
    ]
    assert (outputs[0] - outputs[1]).norm() < 0.02 * outputs[1].norm()


@needs_kernels
def test_the_kernels_multiply_with_all_matrices_of_a_head(target, tmp_path):
    """In 8 bits but where tokens and states are joined; what calibration times is what a pass reads."""
    head = DraftHead.load(save_head(tmp_path, target, torch.arange(96)), target)
    assert head.fused is not None
    ours = [weight[0] if len(weight) == 1 else exact(EightBits(*weight)) for weight in head.fused.matrices]
    assert sum(weight.numel() for weight in ours) == ModelShape.of(head).weights_read(1)
    size = head.config.head_dim
    of_queries = [head.config.num_heads * size, *[head.config.num_key_value_heads * size] * 2]
    theirs = [head.fuse_features.weight, head.combine.weight, *head.query_key_value.weight.split(of_queries)]
    theirs += [head.attention_out.weight, *head.gate_up.weight.chunk(2), head.down.weight, head.embeddings]
    for short, weight in zip(ours, theirs, strict=True):
        assert (short - weight.float()).norm() < 0.01 * weight.float().norm()
    assert sum(weight.dtype == torch.int8 for weight, *_ in head.fused.matrices) == 8


@needs_kernels
def test_a_head_that_the_kernels_cannot_multiply_with_is_computed_without(target, tmp_path):
    head = DraftHead.load(save_head(tmp_path, target, torch.arange(96)), target)
    DraftHead(replace(head.config, intermediate_size=100), head.embeddings).save(tmp_path)
    odd = DraftHead.load(tmp_path, target)
    assert odd.fused is None
    cache = odd.new_cache(1, 4)
    assert odd.scores(odd.forward(torch.ones(1, 1).long(), torch.ones(1, 1, 64).bfloat16(), cache)).isfinite().all()


@needs_kernels
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_all_draft_tokens_in_one_call_are_those_drafted_one_by_one(target, tmp_path, temperature):
    """The call reads three pairs of which a row keeps 3, 1 or none; the steps are those that `HeadProposer` takes."""
    save_head(tmp_path, target, torch.arange(0, 96, 2))
    head, sampling = DraftHead.load(tmp_path, target), SamplingConfig(temperature=temperature)
    known, num_new = torch.tensor([2, 0, 5]), torch.tensor([3, 1, 0])
    text = torch.randint(96, (3, 9), generator=seeded())
    tokens = text.gather(1, known[:, None] + torch.arange(1, 4))
    features = torch.randn(3, 3, 192, generator=seeded(1)).bfloat16()
    caches = [head.new_cache(3, 16) for _ in range(2)]
    for cache in caches:
        head.forward(torch.full((3, 5), 7), torch.ones(3, 5, 64), cache)
    uniforms = torch.rand(3, 4, generator=seeded(2), dtype=torch.float64)
    assert head.fused is not None
    drafted, probs = head.fused.draft(text, known + 1 + num_new, num_new, features, caches[0], temperature, uniforms)

    caches[1].set_lengths(known, 5)
    hidden = head.forward(tokens, head.fuse(features), caches[1])
    caches[1].set_lengths(known + num_new, 8)
    hidden = hidden[torch.arange(3), (num_new - 1).clamp(min=0)][:, None]
    for position in range(4):
        expected = torch.zeros(3, 96)
        expected[:, head.scored_ids] = probabilities(head.scores(hidden[:, 0]), sampling)
        assert torch.allclose(probs[:, position], expected, atol=0.02)
        drawn = expected.argmax(-1) if temperature == 0 else invert(probs[:, position], uniforms[:, position])
        assert torch.equal(drafted[:, position], drawn)
        hidden = head.forward(drafted[:, position : position + 1], hidden, caches[1])
        caches[1].commit(1, at_most=1)


@needs_kernels
@pytest.mark.parametrize("num_scored", [96, 91])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_nan_reaches_the_distributions_of_the_draft(target, tmp_path, temperature, num_scored):
    head = DraftHead.load(save_head(tmp_path, target, torch.arange(num_scored)), target)
    features = torch.full((1, 1, 192), float("nan")).bfloat16()
    text, uniforms = torch.ones(1, 3).long(), torch.full((1, 2), 0.5, dtype=torch.float64)
    two, one = torch.tensor([2]), torch.tensor([1])
    _, probs = head.fused.draft(text, two, one, features, head.new_cache(1, 8), temperature, uniforms)
    assert probs.sum(dim=-1).isnan().all()


@needs_kernels
def test_a_plain_draft_scores_alike_with_and_without_kernels(target, tmp_path):
    layers_of_target(target.model, (0, -1), torch.arange(0, 96, 2)).draft.save(tmp_path)
    eager = LanguageModel(target.model, "eager", compiled=False)
    tokens = torch.randint(96, (2, 6), generator=seeded())
    logits = []
    for model in (target, eager):
        draft = load_plain_draft(tmp_path, model)
        assert draft.body.rotary_emb.inv_freq.dtype == torch.float32  # bfloat16 would turn far positions wrongly
        assert (draft.fused is None) == (model.fused is None)
        logits.append(draft.logits(draft.forward(tokens, draft.new_cache(2, 6)).hidden).float())
    assert (logits[0][..., 1::2] == float("-inf")).all()
    fast, slow = (scores[..., ::2] for scores in logits)
    assert (fast - slow).norm() < 0.02 * slow.norm()


def distributions(*shape: int) -> torch.Tensor:
    """Peaked rows with many zeros, as sampling makes them."""
    logits = 4 * torch.randn(*shape, generator=seeded())
    return torch.softmax(logits.masked_fill(logits < 2, float("-inf")), dim=-1)


@needs_kernels
def test_a_vocabulary_is_drawn_from_as_in_pytorch():
    """Same numbers, same tokens; rounding could part them once in some 10^12 draws."""
    probs, uniforms = distributions(500, 3000), torch.rand(500, generator=seeded(1), dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53])
    assert torch.equal(vocabulary.draw(probs, uniforms), invert(probs, uniforms))
    assert (probs.gather(1, vocabulary.draw(probs, uniforms)[:, None]) > 0).all()
    assert vocabulary.draw(torch.zeros(1, 3000), uniforms[:1]).tolist() == [2999]


@needs_kernels
def test_tokens_are_verified_as_in_pytorch():
    """Two in 10^7 draws may differ, where PyTorch rounds the residual once more to normalise it."""
    target, draft = distributions(400, 4, 2003), distributions(500, 3, 2003)[100:]
    draft[:100] = 0.5 * draft[:100] + 0.5 * target[:100, :3]  # so that some are accepted
    tokens = draft.flatten(0, 1).multinomial(1, generator=seeded(2)).view(400, 3)
    target[100:150, :3] = draft[100:150]  # nothing is left of the target
    draft[150:200, 1:] = 0  # nothing was drafted
    tests = torch.rand(400, 3, generator=seeded(1), dtype=torch.float64)
    numbers = torch.rand(400, generator=seeded(3), dtype=torch.float64)
    num_accepted, token = vocabulary.verify(target, draft, tokens, tests, numbers)
    assert set(num_accepted.tolist()) == {0, 1, 2, 3}
    assert torch.equal(num_accepted, count_accepted(target, draft, tokens, tests))
    assert torch.equal(token, invert(residual_probs(target, draft, num_accepted), numbers))


def rows_in_flight(gamma: int, stops: tuple[int, ...]) -> DecodeState:
    """Rows of which one is done, one is about to be, and the others have room."""
    prompts = [torch.arange(1, 3 + row) for row in range(5)]
    target = LanguageModel(tiny_llama(), "target")
    state = DecodeState(target, prompts, max_new_tokens=9, stop_token_ids=stops, slack=gamma + 1)
    state.lengths += torch.tensor([9, 8, 7, 0, 0])
    state.done[0] = True
    return state


@needs_kernels
@pytest.mark.parametrize("stops", [(), (7,), (8, 7)])
@pytest.mark.parametrize("gamma", [0, 1, 4])
def test_what_a_step_emits_and_counts_is_the_same_in_one_call(gamma, stops, monkeypatch):
    generator, outcomes = seeded(gamma), []
    steps = []
    for _ in range(40):
        drafted = torch.randint(5, 12, (5, gamma), generator=generator)
        chances = torch.rand(5, gamma, generator=generator).round(decimals=0)  # half of them were not drafted
        accepted = torch.randint(gamma + 1, (5,), generator=generator).minimum(torch.tensor([gamma, 0, 1, 4, 4]))
        accepted = torch.stack([accepted, accepted], dim=1)[:, 0]  # of a verifier of one's own: not contiguous
        probs = torch.full((5, gamma + 1, vocabulary.SMALLEST), 0.5)
        steps.append((drafted, chances, probs, Verification(accepted, torch.randint(5, 12, (5,), generator=generator))))
    for serves in (True, False):
        monkeypatch.setattr(vocabulary, "serves", lambda *_, serves=serves: serves)
        outcomes.append([])
        for step in steps:
            state = rows_in_flight(gamma, stops)
            for _ in range(2):
                state.commit(*step)
            rows = state.tokens, state.lengths, state.done, state.num_emitted, state.counts, state.report
            outcomes[-1].append([tensor.tolist() for tensor in rows])
    assert outcomes[0] == outcomes[1]
    assert len({str(outcome) for outcome in outcomes[0]}) > 10


@needs_kernels
def test_a_nan_among_the_probabilities_of_a_step_is_remembered_in_one_call_too():
    drafted, accepted = torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    chances, probs = torch.ones(5, 2), torch.full((5, 3, vocabulary.SMALLEST), 0.5)
    for place, row in [(chances, (3, 1)), (probs, (4, 2)), (None, None)]:
        state, told = rows_in_flight(2, ()), [chances.clone(), probs.clone()]
        if place is not None:
            told[place is probs][row] = torch.nan
        state.commit(drafted, *told, Verification(accepted, accepted))
        assert state.broken == (place is not None)
        if place is not None:
            with pytest.raises(ValueError, match="the logits hold NaN"):
                state.look()


@needs_kernels
@pytest.mark.parametrize(("longest", "shortest"), [(3, 1), (5, 2), (1, 1)])
def test_the_text_is_searched_as_in_pytorch(longest, shortest, monkeypatch):
    proposer, found = NgramProposer(longest, shortest), 0
    for seed in range(60):
        generator = seeded(seed)
        texts = [torch.randint(4, (number,), generator=generator) for number in (1, 2, 3, 9, 14)]
        target = LanguageModel(tiny_llama(), "target")
        state = DecodeState(target, texts, max_new_tokens=9, stop_token_ids=(), slack=5)
        for row, text in zip(state.tokens, texts, strict=True):  # what a rollback left behind is not text
            row[len(text) :].random_(4, generator=generator)
        proposals = []
        for available in (True, False):
            monkeypatch.setattr(vocabulary, "available", lambda *_, available=available: available)
            proposals.append(proposer.propose(state, 4, SamplingConfig(), seeded()))
        assert all(map(torch.equal, *proposals))
        found += proposals[0][1].any(dim=-1).sum()
    assert 60 < found < 60 * 5 * 4


@needs_kernels
@pytest.mark.parametrize("accepted", [-1, 3])
def test_neither_fewer_tokens_than_none_nor_more_than_were_drafted_can_be_accepted(accepted):
    state, two = rows_in_flight(2, ()), torch.zeros(5, 2, dtype=torch.int64)
    probs, verdict = torch.zeros(5, 3, vocabulary.SMALLEST), Verification(torch.full((5,), accepted), two[:, 0].clone())
    with pytest.raises(RuntimeError, match=f"{accepted} of 2 draft tokens cannot be accepted"):
        state.commit(two, two.float(), probs, verdict)


@needs_kernels
def test_a_verifier_of_one_s_own_may_count_in_32_bits_and_return_more():
    class Told(NamedTuple):
        next_token: torch.Tensor
        num_accepted: torch.Tensor
        reason: str

    state, drafted = rows_in_flight(2, ()), torch.full((5, 2), 6)
    told = Told(torch.full((5,), 7), torch.tensor([1, 0, 1, 1, 1], dtype=torch.int32), "told to")
    state.commit(drafted, drafted.float(), torch.zeros(5, 3, vocabulary.SMALLEST), told)
    assert state.tokens[4, 6:9].tolist() == [6, 7, 7]
    assert state.report.tolist() == [7, 13, 0, 0, 1, 2, 2, 2]


@needs_kernels
@pytest.mark.parametrize("sampling", [SamplingConfig(0), SamplingConfig()], ids=["greedy", "sampled"])
def test_decoding_a_large_vocabulary_gives_what_it_gives_without_kernels_for_it(sampling, tmp_path, monkeypatch):
    large = LanguageModel(tiny_llama(vocab_size=1100, initializer_range=0.2).bfloat16(), "large", feature_layers=(0, 1))
    head = DraftHead.load(save_head(tmp_path, large, torch.arange(1100)), large)
    texts = [torch.tensor([5, 6, 7, 5, 6]), torch.arange(900, 912), torch.tensor([3])]
    told = []
    for available in (True, False):
        if not available:
            monkeypatch.setattr(vocabulary, "available", lambda *_: False)
        for proposer in (HeadProposer(head), NgramProposer(), CompositeProposer(HeadProposer(head))):
            options = {"max_new_tokens": 20, "sampling": sampling, "stop_token_ids": (17,)}
            result = speculative_decode(large, proposer, texts, num_draft_tokens=3, generator=seeded(), **options)
            told.append(([row.tolist() for row in result.tokens], result.step_tokens, result.drafted, result.accepted))
    assert told[:3] == told[3:]
    assert all(drafted > 0 for *_, drafted, _ in told)


@needs_kernels
def test_layers_are_counted_from_the_end_too():
    tokens, model = torch.arange(6)[None], with_heads(2, 1, 32)
    layers = {(0, -2), (0, len(model.model.layers) - 2)}
    targets = [LanguageModel(model, "target", feature_layers=named) for named in layers]
    behind, counted = (target.forward(tokens, target.new_cache(1, 6)).features for target in targets)
    assert torch.equal(behind, counted)


@needs_kernels
@pytest.mark.parametrize(
    ("text", "num_new", "error"),
    [
        ([1, 2, 3, 4], 3, r"3 cannot be new"),
        ([1, 2, 3, 4], -1, r"-1 cannot be new"),
        ([1, 99999, 1, 1], 1, r"token 99999 is none of 96"),
    ],
)
def test_a_head_refuses_text_that_cannot_be(target, tmp_path, text, num_new, error):
    head = DraftHead.load(save_head(tmp_path, target, torch.arange(96)), target)
    rows = torch.tensor([text]), torch.tensor([3 if num_new != 1 else 2]), torch.tensor([num_new])
    features, uniforms = torch.zeros(1, 2, 192).bfloat16(), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises((RuntimeError, IndexError), match=error):
        head.fused.draft(*rows, features, head.new_cache(1, 8), 0.0, uniforms)


@needs_kernels
def test_rows_and_layers_that_are_not_there_are_refused(target):
    one, four = torch.ones(1, 1, dtype=torch.int64), torch.ones(4, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="a cache of 1 rows do not belong together"):
        target.forward(four, target.new_cache(1, 16))
    cache = target.new_cache(1, 8)
    with pytest.raises(IndexError, match=r"layer 1 is none of \d, or is named twice"):
        target.fused(one, cache.place(1), cache, (1, 1))


@needs_kernels
def test_a_token_that_the_model_does_not_know_is_refused(target):
    with pytest.raises(IndexError, match="token 96 is none of 96"):
        target.forward(torch.tensor([[96]]), target.new_cache(1, 8))


@needs_kernels
def test_more_rows_than_32_bits_can_count_in_tiles_are_all_computed():
    x, weight = torch.ones(200_000, 32).bfloat16(), torch.ones(4, 32).bfloat16()
    assert (fused.linear(x, weight) == 32).all()


@needs_kernels
@pytest.mark.parametrize("temperature", [0.0, 1e-42, 1e-9, 0.7, 1.0])
def test_probabilities_are_those_of_pytorch(temperature):
    """Also where logits are equal or -inf, and in the last lanes of a vector; a NaN spoils its row and no other."""
    sampling = SamplingConfig(temperature=temperature)
    logits = 5 * torch.randn(2, 4, 1031, generator=seeded())
    logits[0, 1, 1000:] = 40.0
    logits[1, 2, 7:] = float("-inf")
    expected = probabilities(logits.double(), sampling).float()
    assert torch.allclose(probabilities(logits, sampling), expected, rtol=1e-5, atol=1e-9)
    logits[0, 3, 1030] = float("nan")
    rows = probabilities(logits, sampling).isnan()
    assert rows[0, 3].all()
    assert rows.sum() == 1031


@needs_kernels
@pytest.mark.parametrize("size", range(1024, 1041))
def test_a_row_of_nothing_but_nan_stays_a_row(size):
    """Whatever of a vector its end fills."""
    logits = torch.zeros(3, size)
    logits[1], logits[0, -1] = float("nan"), 1.0
    for temperature in (0.0, 1.0):
        rows = vocabulary.probabilities(logits, temperature)
        assert rows[1].isnan().all()
        assert rows[::2].isfinite().all()
        assert rows[0].argmax() == size - 1


def test_toys_and_other_types_are_drawn_from_by_pytorch():
    assert not vocabulary.serves(torch.zeros(2, 20))
    assert not vocabulary.serves(torch.zeros(2, 5000, dtype=torch.float64))
    assert not vocabulary.serves(torch.zeros(2, 5000), torch.zeros(2, 5000, dtype=torch.float64))


def test_models_that_the_kernels_cannot_compute_run_as_they_are():
    float32 = LanguageModel(tiny_llama().bfloat16().float(), "float32")
    biased = tiny_llama().bfloat16()
    biased.config.attention_bias = True
    assert float32.fused is None
    assert LanguageModel(biased, "biased").fused is None
    assert LanguageModel(tiny_llama().bfloat16(), "asked for", compiled=False).fused is None


def test_without_a_working_compiler_plain_pytorch_is_used_and_said_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "instructions", lambda: "avx2")

    def fails(command, **kwargs):
        raise subprocess.CalledProcessError(1, command, stderr="fatal error: no such header\nmore")

    monkeypatch.setattr(build.subprocess, "run", fails)
    library, reason = build.load.__wrapped__()
    assert library is None
    assert reason == "the CPU kernels do not compile or load: fatal error: no such header"
    assert "plain PyTorch is used instead" in caplog.text
    assert list((tmp_path / "kernels").iterdir()) == []


@needs_kernels
def test_a_run_knows_its_kernels_and_what_compiling_them_took():
    facts = build.kernel_facts()
    assert facts["kernels"].startswith("kernels-")
    assert facts["compile_s"] is None or facts["compile_s"] > 0


def test_another_processor_is_told_so(monkeypatch):
    monkeypatch.setattr(build, "instructions", lambda: None)
    assert build.load.__wrapped__() == (None, "this processor has no AVX2, or PyTorch is told not to use it")
