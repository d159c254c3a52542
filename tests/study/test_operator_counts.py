"""What a piece of decoding takes is counted from its operators: against counts by hand, and with operators left out."""

import pytest
import torch
import transformers
from torch.nn.functional import embedding, linear
from torch.utils.flop_counter import flop_registry

from specdec_lib.hardware.costs import DECODE, SEVERAL, VERIFICATION, counted
from specdec_lib.machine import operator_counts
from specdec_lib.machine.fake_device import fake_device
from specdec_lib.machine.operator_counts import OperatorCounter
from specdec_lib.machine.step_costs import call_of_done_rows, step_pieces
from specdec_lib.machine.stopwatch import Stopwatch
from specdec_lib.models.engines.engine import EagerEngine
from specdec_lib.models.loading.checkpoints import random_model
from specdec_lib.models.pair import Pair
from specdec_lib.study.dry_run import pass_costs

LAYERS, HIDDEN, INTERMEDIATE, HEADS, SHARED, DIM = 2, 32, 48, 4, 2, 8
TINY = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": SHARED,
    "head_dim": DIM, "intermediate_size": INTERMEDIATE, "vocab_size": 64,
}  # fmt: skip
BATCH, TOKENS, POSITIONS = 3, 5, 128
X, Y = torch.ones(8, 16), torch.ones(8, 16)  # 512 bytes each
TABLE, PLACES = torch.ones(100, 16), torch.arange(3)  # 6,400 and 24 bytes


def tiny(kind="llama", device="cpu", **sizes):
    return random_model(kind, transformers.AutoConfig.for_model(kind, **TINY | sizes), device, "bfloat16", 0)


def tiny_counts():
    """Of a pass of plain operators on the CPU."""
    model = tiny()
    model.active_engine = EagerEngine(*model._parts)
    return pass_costs.count_layers(model, BATCH, TOKENS, POSITIONS)


def flops_of_a_tiny_llama():
    """Of its products, and of its attention."""
    of_layer = HIDDEN * DIM * (HEADS + 2 * SHARED) + HEADS * DIM * HIDDEN + 3 * HIDDEN * INTERMEDIATE
    rows = BATCH * TOKENS
    return 2 * rows * LAYERS * of_layer, rows * LAYERS * 4 * HEADS * DIM * POSITIONS


def test_flops_and_weights_of_a_tiny_llama_are_those_of_its_formula():
    counts = tiny_counts()
    products, attention = flops_of_a_tiny_llama()
    assert counts.product_flops == products
    assert counts.attention_flops == attention
    assert counts.weight_bytes == products // (2 * BATCH * TOKENS) * 2  # each weight once, in two bytes


@pytest.mark.parametrize("missing", [torch.ops.aten.mm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu])
def test_a_counter_that_misses_a_kind_of_operator_is_found_out(missing, monkeypatch):
    """Known-bad twins: without a formula for products it refuses, without one for attention it counts too little."""
    monkeypatch.delitem(operator_counts.FLOPS, missing, raising=False)
    monkeypatch.delitem(flop_registry, missing, raising=False)
    if missing is torch.ops.aten.mm:
        with pytest.raises(ValueError, match=r"aten.mm reads weights, .* is not known: add it to FLOPS"):
            tiny_counts()
    else:
        assert tiny_counts().attention_flops < 0.01 * flops_of_a_tiny_llama()[1]


@pytest.mark.parametrize(
    ("piece", "moved", "kernels"),
    [
        (lambda: X + Y, 3 * 512, 1),
        (lambda: X.t()[2:], 0, 0),  # a view
        (lambda: X[:2] * 2, 2 * 2 * 64, 1),  # two rows of eight
        (lambda: X[:1].expand(8, 16) + Y, 64 + 2 * 512, 1),  # what is repeated is read once
        (lambda: torch.empty(100), 0, 0),
        (lambda: torch.zeros(100), 400, 1),
        (lambda: embedding(PLACES, TABLE), 24 + 2 * 3 * 64, 1),  # its rows, not the table
        (lambda: TABLE[PLACES], 24 + 2 * 3 * 64, 1),
        (lambda: torch.zeros(100, 16).index_put_((PLACES,), X[:3]), 6400 + 24 + 2 * 3 * 64, 2),  # three rows in place
        (lambda: X.clone().copy_(Y), 4 * 512, 2),  # what is overwritten is not read
        (lambda: X.clone().add_(1), 4 * 512, 2),
        (lambda: torch.cat([X, Y]), 4 * 512, 1),
        (lambda: X.softmax(1), 2 * 512, 1),
        (lambda: linear(X, Y), 2 * 512 + 4 * 64, 1),
    ],
)
def test_bytes_and_kernels_of_operators_are_those_counted_by_hand(piece, moved, kernels):
    with OperatorCounter("cpu") as counter:
        made = piece()
    counts = counter.counts(made)
    assert counts.other_bytes + counts.attention_bytes == moved
    assert counts.kernels == kernels


def test_operators_in_a_row_become_one_kernel_that_keeps_its_own_to_itself():
    """Three operators between two products; then the same where the second result is kept."""

    def piece():
        first = linear(X, weight)
        scaled = first * 2
        added = scaled + 1
        return scaled, linear(added.relu(), weight)

    layer = torch.nn.Linear(16, 16, bias=False)
    weight = layer.weight
    with torch.no_grad(), OperatorCounter("cpu", layer) as counter:
        last = piece()[1]
        alone = counter.counts([last])
        kept = counter.counts([piece()])
    assert (alone.kernels, alone.fused_kernels) == (5, 3)
    assert alone.weight_bytes == 2 * 16 * 16 * 4
    assert alone.other_bytes == 4 * 512 + 6 * 512  # two products, and three operators with an input and an output each
    assert alone.fused_bytes == 4 * 512 + 2 * 512
    assert kept.fused_bytes == alone.fused_bytes + 512


def test_experts_are_counted_whole_with_the_rows_sent_to_them():
    """8 tokens of 2 experts each; which experts these are only contents would say."""
    sizes = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    with fake_device("any", 1e12):
        counts = pass_costs.count_layers(tiny("qwen3_moe", "cuda", **sizes), 2, 4, 64)
    of_expert = 3 * HIDDEN * 16
    assert (counts.experts, counts.expert_rows) == (4, 16)
    assert counts.expert_bytes == LAYERS * 4 * of_expert * 2
    of_token = HIDDEN * DIM * (HEADS + 2 * SHARED) + HEADS * DIM * HIDDEN + HIDDEN * 4  # attention, and the router
    assert counts.product_flops == 2 * LAYERS * (8 * of_token + 16 * of_expert)


def test_what_a_compiler_leaves_is_taken_for_compiled_models_alone():
    """Layers with windows are not compiled: each operator stays a kernel."""
    with fake_device("any", 1e12):
        plain, windowed = (pass_costs._compiled(tiny(kind, "cuda")) for kind in ("llama", "gemma3_text"))
        counts = [pass_costs.count_layers(model, 1, 1, 64) for model in (plain, windowed)]
    assert counts[0].fused_kernels < counts[0].kernels / 2
    assert counts[1].fused_kernels == counts[1].kernels


@pytest.mark.parametrize(
    ("name", "layers"), [("vicuna-68m", 2), pytest.param("qwen3-0.6b", 28, marks=pytest.mark.slow)]
)
def test_what_is_committed_is_what_todays_code_takes_at_points_between_too(name, layers):
    """The whole model, where `costs.csv` was made from its first layers and at the corners; no sizes are equal here."""
    with fake_device("any", 1e12):
        model = pass_costs.shortened(name, layers)
        for batch, tokens, positions in ((7, 1, 29 * 64), (13, 4, 23 * 64)):
            found = list(pass_costs.count_layers(model, batch, tokens, positions))
            piece = DECODE if tokens == 1 else SEVERAL
            assert list(counted(name, piece, batch, tokens, positions)) == pytest.approx(found, abs=1e-3)


def test_the_rest_of_a_step_is_known_for_any_vocabulary():
    with fake_device("any", 1e12):
        found = list(pass_costs.count_rest_of_step(tiny_pair(32003), 13, 6))
    assert list(counted("any", VERIFICATION, 13, 6, 32003)) == pytest.approx(found, abs=1e-3)


def tiny_pair(vocabulary):
    target, draft = (pass_costs.tiny_model(vocabulary) for _ in range(2))
    return Pair("tiny", target, draft, None, "tiny", "tiny", {})


@torch.inference_mode()
def test_a_proposal_is_the_sum_of_its_counted_pieces():
    """Passes, output layer and choices; beyond them it gathers tokens: a few kernels that move next to nothing."""
    batch, gamma, vocabulary = 2, 4, 4096
    with fake_device("any", 1e12):
        pair = tiny_pair(vocabulary)
        draft = pair.draft
        call = call_of_done_rows(pair, Stopwatch(draft.device), batch, 8, gamma + 1, 1.0)
        propose = step_pieces(pair, call, ["draft"])["draft"]
        with OperatorCounter("cuda", draft.model) as counter:
            propose()
        whole = counter.counts([])
        pieces = [pass_costs.count_layers(draft, batch, 2, 64)]
        pieces += [pass_costs.count_layers(draft, batch, 1, 64)] * (gamma - 1)
        pieces += [pass_costs.count_output(draft, batch), pass_costs.count_draft_choice(draft, batch)] * gamma
    parts = [sum(counts) for counts in zip(*pieces, strict=True)]
    names = ("product_flops", "attention_flops", "weight_bytes", "attention_bytes", "other_bytes", "kernels")
    for name in names:
        place = whole._fields.index(name)
        assert parts[place] == pytest.approx(whole[place], rel=0.05), name
