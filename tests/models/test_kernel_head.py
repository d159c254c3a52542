"""Drafts on the C++ kernels: a head with weights in 8 bits, and a plain draft, against plain PyTorch."""

from dataclasses import replace

import pytest
import torch
from tiny_models import needs_kernels, save_head, seeded, tiny_llama

from specdec_lib.distill.students import layers_of_target
from specdec_lib.models.engines import kernels
from specdec_lib.models.engines.kernel_head import EightBits, KernelHead
from specdec_lib.models.plain_draft import load_plain_draft
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import ModelShape
from specdec_lib.models.shipped_head import ShippedHead


@pytest.fixture(scope="module")
def target():
    return LanguageModel(tiny_llama().bfloat16(), "tiny", feature_layers=(0, 1))


@pytest.fixture
def head(target, tmp_path):
    return ShippedHead.load(save_head(tmp_path, target, torch.arange(96)), target)


def exact(short):
    """The weight that a weight of 8 bits stands for."""
    return short.numbers.float() * short.factors[:, None]


def test_8_bits_are_the_nearest_to_every_weight():
    weight = torch.randn(64, 96, generator=seeded()) * torch.logspace(-30, 3, 64)[:, None]
    weight[5] = 0
    numbers, factors = short = EightBits.of(weight.bfloat16())
    assert numbers.dtype == torch.int8
    assert numbers.abs().amax(dim=1).unique().tolist() == [0, 127]
    assert ((exact(short) - weight.bfloat16().float()).abs() <= factors[:, None] * 0.501).all()


@needs_kernels
@pytest.mark.parametrize("rows", [*range(1, 14), 40])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 4), (32, 7), (576, 102), (1536, 64)])
def test_a_product_in_8_bits_is_that_of_pytorch_and_row_by_row_the_same(rows, inputs, outputs):
    x = torch.randn(rows, inputs, generator=seeded()).bfloat16()
    weight = EightBits.of(torch.randn(outputs, inputs, generator=seeded(1)))
    expected, products = x.float() @ exact(weight).T, kernels.linear(x, *weight)
    assert (products - expected).norm() < 1e-4 * expected.norm()
    assert torch.equal(products, torch.cat([kernels.linear(row, *weight) for row in x.split(1)]))


@needs_kernels
def test_integers_of_long_rows_do_not_overflow_and_a_nan_stays_in_its_row():
    x = torch.full((4, 32768), 3.0).bfloat16()
    x[1, 7], x[2, 7], x[3] = torch.nan, torch.inf, 0
    products = kernels.linear(x, *EightBits.of(torch.ones(4, 32768)))
    assert torch.allclose(products[0], torch.tensor(3.0 * 32768))
    assert products[1:3].isnan().all()
    assert not products[3].any()


@needs_kernels
def test_a_head_drafts_alike_with_and_without_kernels(target, head, tmp_path):
    slow = ShippedHead.load(tmp_path, LanguageModel(target.model, "eager", compiled=False))
    features = torch.randn(2, 1, 192, generator=seeded()).bfloat16()
    tokens = torch.arange(12).view(2, 6)[:, 3:4]  # one column of a wider table, as in a batch's prefill
    scores = [
        each.scores(each.forward(tokens, each.fuse(features), each.new_cache(2, 6))).float() for each in (head, slow)
    ]
    assert (head.fused, slow.fused) == (head, None)
    assert (scores[0] - scores[1]).norm() < 0.02 * scores[1].norm()


@needs_kernels
def test_calibration_times_all_matrices_of_a_head(head):
    """All are in 8 bits but the two that fuse states and join them with tokens."""
    matrices = [weight[0] if len(weight) == 1 else exact(EightBits(*weight)) for weight in head.matrices]
    assert sum(weight.numel() for weight in matrices) == ModelShape.of(head).weights_multiplied()
    assert sum(weight.dtype == torch.int8 for weight, *_ in head.matrices) == 8
    size = head.config.head_dim
    heads = [head.config.num_heads * size, *[head.config.num_key_value_heads * size] * 2]
    weights = [head.fuse_features.weight, head.combine.weight, *head.query_key_value.weight.split(heads)]
    weights += [head.attention_out.weight, *head.gate_up.weight.chunk(2), head.down.weight, head.embeddings]
    for short, weight in zip(matrices, weights, strict=True):
        assert (short - weight.float()).norm() < 0.01 * weight.float().norm()


@needs_kernels
def test_a_head_whose_sizes_the_kernels_cannot_multiply_is_computed_without(target, head, tmp_path):
    ShippedHead(replace(head.config, intermediate_size=100), head.embeddings).save(tmp_path)
    odd = ShippedHead.load(tmp_path, target)
    assert not isinstance(odd, KernelHead)
    state = odd.forward(torch.ones(1, 1).long(), torch.ones(1, 1, 64).bfloat16(), odd.new_cache(1, 4))
    assert odd.scores(state).isfinite().all()


def draw(probs, uniforms):
    """Inversion of the cumulative distribution `[B, V]` at `uniforms` `[B]`."""
    return (probs.double().cumsum(-1) <= uniforms[:, None] * probs.double().sum(-1, keepdim=True)).sum(-1)


@needs_kernels
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_all_draft_tokens_in_one_call_are_those_drafted_one_by_one(target, tmp_path, temperature):
    """The call reads three pairs, of which a row keeps 3, 1 or none."""
    head = ShippedHead.load(save_head(tmp_path, target, torch.arange(0, 96, 2)), target)
    known, num_new = torch.tensor([2, 0, 5]), torch.tensor([3, 1, 0])
    text = torch.randint(96, (3, 9), generator=seeded())
    tokens = text.gather(1, known[:, None] + torch.arange(1, 4))
    features = torch.randn(3, 3, 192, generator=seeded(1)).bfloat16()
    caches = [head.new_cache(3, 16) for _ in range(2)]
    for cache in caches:
        head.forward(torch.full((3, 5), 7), torch.ones(3, 5, 64), cache)
    uniforms = torch.rand(3, 4, generator=seeded(2), dtype=torch.float64)
    drafted, probs = head.draft(text, known + 1 + num_new, num_new, features, caches[0], temperature, uniforms)

    caches[1].set_lengths(known, 5)
    hidden = head.forward(tokens, head.fuse(features), caches[1])
    caches[1].set_lengths(known + num_new, 8)
    hidden = hidden[torch.arange(3), (num_new - 1).clamp(min=0)][:, None]
    for position in range(4):
        scores, expected = head.scores(hidden[:, 0]), torch.zeros(3, 96)
        one_hot = torch.eye(len(head.scored_ids))[scores.argmax(-1)]
        expected[:, head.scored_ids] = (scores / temperature).softmax(-1) if temperature else one_hot
        assert torch.allclose(probs[:, position], expected, atol=0.02)
        assert torch.equal(drafted[:, position], draw(probs[:, position], uniforms[:, position]))
        hidden = head.forward(drafted[:, position : position + 1], hidden, caches[1])
        caches[1].commit(1, at_most=1)


@needs_kernels
@pytest.mark.parametrize("num_scored", [96, 91])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_nan_reaches_the_distributions_of_the_draft(target, tmp_path, temperature, num_scored):
    head = ShippedHead.load(save_head(tmp_path, target, torch.arange(num_scored)), target)
    features = torch.full((1, 1, 192), float("nan")).bfloat16()
    text, uniforms = torch.ones(1, 3).long(), torch.full((1, 2), 0.5, dtype=torch.float64)
    two, one = torch.tensor([2]), torch.tensor([1])
    _, probs = head.draft(text, two, one, features, head.new_cache(1, 8), temperature, uniforms)
    assert probs.sum(dim=-1).isnan().all()


@needs_kernels
@pytest.mark.parametrize(
    ("text", "length", "num_new", "error"),
    [
        ([1, 2, 3, 4], 3, 3, r"3 cannot be new"),
        ([1, 2, 3, 4], 3, -1, r"-1 cannot be new"),
        ([1, 99999, 1, 1], 2, 1, r"token 99999 is none of 96"),
    ],
)
def test_a_head_refuses_text_that_cannot_be(head, text, length, num_new, error):
    rows = torch.tensor([text]), torch.tensor([length]), torch.tensor([num_new])
    features, uniforms = torch.zeros(1, 2, 192).bfloat16(), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises((RuntimeError, IndexError), match=error):
        head.draft(*rows, features, head.new_cache(1, 8), 0.0, uniforms)


@needs_kernels
def test_weights_in_8_bits_and_no_others_have_factors():
    x, weight = torch.ones(2, 32).bfloat16(), torch.ones(8, 32, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="weights of 8 bits, and no others, have factors"):
        kernels.linear(x, weight)
    with pytest.raises(RuntimeError, match="as many factors as rows"):
        kernels.linear(x, weight, torch.ones(7))


@needs_kernels
def test_a_plain_draft_scores_alike_with_and_without_kernels(target, tmp_path):
    layers_of_target(target.model, (0, -1), torch.arange(0, 96, 2)).draft.save(tmp_path)
    tokens = torch.randint(96, (2, 6), generator=seeded())
    logits = []
    for model in (target, LanguageModel(target.model, "eager", compiled=False)):
        draft = load_plain_draft(tmp_path, model)
        assert draft.body.rotary_emb.inv_freq.dtype == torch.float32  # bfloat16 would turn far positions wrongly
        assert draft.engine == model.engine
        logits.append(draft.logits(draft.forward(tokens, draft.new_cache(2, 6)).hidden).float())
    assert (logits[0][..., 1::2] == float("-inf")).all()
    fast, slow = (scores[..., ::2] for scores in logits)
    assert (fast - slow).norm() < 0.02 * slow.norm()
