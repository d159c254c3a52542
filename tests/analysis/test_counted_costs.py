"""Counted costs against the formulas that they replaced, and what they make of a GPU's data sheet."""

import subprocess
import sys
from dataclasses import replace

import pytest

from specdec_lib.analysis.cost_model.data_sheet import ALL_REDUCE_SECONDS, Corner, DataSheet, step_costs
from specdec_lib.analysis.cost_model.machine import VOCABULARY_PASSES
from specdec_lib.hardware.catalog import load_gpus, load_models
from specdec_lib.hardware.costs import (
    ANY,
    BYTES,
    CHOOSE,
    DECODE,
    DRAFT_CHOICE,
    OUTPUT,
    SEVERAL,
    VERIFICATION,
    Counts,
    cache_bytes,
    counted,
    layer_of,
    stated,
    weights_kept,
    weights_read,
)
from specdec_lib.models.shape import known_shape

COUNTED = [name for name in load_models() if not name.startswith(("qwen3.5", "qwen3.6"))]  # others are read row by row
COMPRESSED = {"glm-4.7-flash"}  # each pass makes keys and values of all positions anew, which the formulas do not know
IDEAL = Corner(1.0, 1.0, 0.0, 0.0)
H100 = load_gpus()["h100-sxm"]
TARGET, DRAFT = "qwen3-8b", "qwen3-0.6b"


@pytest.mark.parametrize("name", COUNTED)
def test_counts_agree_with_the_formulas_of_a_models_shape(name):
    """Within 5 %, for one token and for a verification: weights, their products, attention, keys and values."""
    shape, batch, positions = known_shape(name), 3, 2000
    output = counted(name, OUTPUT, batch, 1, 0)
    assert output.weight_bytes == pytest.approx(2 * shape.output_weights, rel=0.05)
    for piece, tokens in ((DECODE, 1), (SEVERAL, 5)):
        rows, counts = batch * tokens, counted(name, piece, batch, tokens, positions)
        multiplied = 2 * rows * (shape.weights_multiplied() - shape.output_weights)
        assert weights_read(name, counts, "bfloat16", rows) == pytest.approx(
            shape.bytes_read(rows, 2) - 2 * shape.output_weights, rel=0.05
        )
        if name not in COMPRESSED:
            assert counts.product_flops == pytest.approx(multiplied, rel=0.05)
            assert counts.attention_flops == pytest.approx(rows * shape.attention_operations(positions), rel=0.05)
    assert weights_kept(name, "bfloat16") == pytest.approx(shape.bytes_kept(2), rel=0.05)
    if name not in COMPRESSED:
        of_token = 2 * shape.key_values_per_token()
        assert cache_bytes(name, batch, positions) == pytest.approx(batch * positions * of_token, rel=0.05)


def test_bytes_of_a_choice_against_the_passes_over_probabilities_that_were_typed():
    """Choosing agrees within 5 %. A draft's choice is kept too, and a verification draws from one place of each row."""
    passes = {}
    for piece, tokens in ((CHOOSE, 1), (DRAFT_CHOICE, 1), (VERIFICATION, 5)):
        counts = counted(ANY, piece, 64, tokens, 128_000)
        passes[piece] = counts.other_bytes / (64 * tokens * 128_000 * 4)
    assert passes[CHOOSE] == pytest.approx(VOCABULARY_PASSES, rel=0.05)
    assert passes[VERIFICATION] < VOCABULARY_PASSES < passes[DRAFT_CHOICE]


def test_one_token_costs_its_bytes_and_many_cost_their_operations():
    """The 16.4 GB of an 8B model at 3.35 TB/s take 4.5 ms, and 4,096 tokens of it at 989 TFLOP/s 63 ms."""
    machine = DataSheet(H100, IDEAL, "bfloat16")
    weights = counted(TARGET, DECODE, 1, 1, 64).weight_bytes + counted(TARGET, OUTPUT, 1, 1, 0).weight_bytes
    assert machine.pass_(TARGET, 1, 1, 0) == pytest.approx(weights / 3.35e12, rel=0.01)
    assert machine.pass_(TARGET, 64, 64, 0) > weights / 2 * 2 * 4096 / (H100.bf16_tflops * 1e12)


def test_gaps_add_to_the_work_and_the_host_hides_behind_it():
    kernels = counted(TARGET, DECODE, 1, 1, 101).fused_kernels + 1  # the output layer
    ideal, gaps = (DataSheet(H100, Corner(1.0, 1.0, gap, 0.0), "bfloat16") for gap in (0.0, 1e-6))
    assert gaps.pass_(TARGET, 1, 1, 100) == pytest.approx(ideal.pass_(TARGET, 1, 1, 100) + kernels * 1e-6)
    fast, slow = (replace(ideal, corner=Corner(1.0, 1.0, 0.0, start)) for start in (1e-7, 1e-4))
    assert fast.pass_(TARGET, 1, 1, 100) == ideal.pass_(TARGET, 1, 1, 100)
    assert slow.pass_(TARGET, 1, 1, 100) == pytest.approx(kernels * 1e-4, rel=0.01)


def test_speculation_stops_paying_where_verification_costs():
    machine = DataSheet(H100, Corner(0.8, 0.7, 2.5e-6, 0.0), "bfloat16")
    few, many = (
        step_costs(machine, TARGET, DRAFT, batch=batch, num_draft_tokens=4, context=100).speedup(3.0)
        for batch in (1, 256)
    )
    assert few > 1.3
    assert many < 1


def test_of_experts_that_no_token_was_sent_to_nothing_is_read():
    """128 experts of which a token takes 8: one token reads 6 % of them, a hundred nearly all."""
    counts = Counts(0, 0, weight_bytes=100, expert_bytes=80, attention_bytes=0, other_bytes=0, fused_bytes=0, kernels=1,
                    fused_kernels=1, experts=128)  # fmt: skip
    one, hundred = (weights_read(TARGET, counts._replace(expert_rows=8 * rows), "bfloat16", rows) for rows in (1, 100))
    assert one == pytest.approx(20 + 80 * 8 / 128)
    assert 99 < hundred < 100


def test_a_quantised_checkpoint_is_read_in_its_own_form():
    """fp8 in all matrices of layers; the 4 bits of gpt-oss in experts alone."""
    for name, whole in (("qwen3-8b-fp8", 0.5), ("gpt-oss-20b", 0.5312 / 2)):
        counts = counted(name, DECODE, 1, 1, 64)
        experts = counts.expert_bytes or counts.weight_bytes
        everything = counts._replace(expert_rows=counts.experts)
        read = weights_read(name, everything, "bfloat16", 1)
        assert read == pytest.approx(counts.weight_bytes - experts * (1 - whole), rel=0.01)


def test_several_gpus_split_weights_and_attention_and_meet_twice_in_a_layer():
    one, two = (DataSheet(H100, IDEAL, "bfloat16", "graph", number) for number in (1, 2))
    others = counted(TARGET, DECODE, 1, 1, 101).fused_bytes + counted(TARGET, OUTPUT, 1, 1, 0).fused_bytes
    alone = one.pass_(TARGET, 1, 1, 100) - others / 3.35e12
    meeting = 2 * stated(TARGET, "num_hidden_layers") * ALL_REDUCE_SECONDS
    assert two.pass_(TARGET, 1, 1, 100) == pytest.approx(alone / 2 + others / 3.35e12 + meeting)


def test_weights_of_fewer_bits_are_read_sooner():
    half, quarter = (DataSheet(H100, IDEAL, dtype).pass_(TARGET, 1, 1, 0) for dtype in ("int8", "int4"))
    assert half == pytest.approx(DataSheet(H100, IDEAL, "bfloat16").pass_(TARGET, 1, 1, 0) / 2, rel=0.01)
    assert quarter / half == pytest.approx(BYTES["int4"], rel=0.01)  # groups of 32 carry their scales


def test_a_model_that_was_not_counted_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"has no decode of 'gpt-9'.*gpu-rehearsal --gpu h100 --write-plan"):
        counted("gpt-9", DECODE, 1, 1, 64)
    assert counted(layer_of("llama-2-7b"), DECODE, 1, 1, 64).kernels > 0


def test_predictions_need_no_torch():
    script = """
import sys
from specdec_lib.analysis.cost_model.gpus import predict
from specdec_lib.analysis.cost_model.published import published_table
from specdec_lib.hardware.catalog import price
from specdec_lib.params_files import load_params
params = load_params("h100")
assert len(predict(params, price(params.price))) and len(published_table())
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
