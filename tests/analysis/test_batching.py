"""What a batch gives, on a machine whose every time is known."""

import pandas as pd
import pytest
from synthetic_rows import as_read_back, study, synthetic_rows

from specdec_lib.analysis import metrics
from specdec_lib.analysis.headline import along
from specdec_lib.analysis.sweep import batching
from specdec_lib.report.captions.sweep import finding_batches
from specdec_lib.report.tables.sweep import batching_table


def known_rows():
    """Reading a prompt takes 100 ms a row; a step 10 ms at batch 1, 20 ms at batch 4; 11 tokens without speculation."""
    rows = synthetic_rows(study(batch_sizes=[1, 4], max_new_tokens=[11]))
    rows = rows[(rows["method"] == "autoregressive") & rows["prompt_tokens"].isna()].to_dict("records")
    for row in rows:
        batch = row["batch_size"]
        step_ms, row["ttft_ms"] = {1: 10.0, 4: 20.0}[batch], 100.0 * batch
        row["tokens_per_second"] = 1000 * batch * 11 / (row["ttft_ms"] + 10 * step_ms)
    return as_read_back([{name: None if value is pd.NA else value for name, value in row.items()} for row in rows])


def test_a_batch_multiplies_decoding_and_not_the_reading_of_prompts():
    params = study(batch_sizes=[1, 4], max_new_tokens=[11])
    gains = batching.batch_gains(metrics.speedups(along(known_rows(), params, "batch_size")))
    alone, four = (gains[gains["batch_size"] == batch].iloc[0] for batch in (1, 4))
    assert alone["decoding_per_second"] == pytest.approx(100)
    assert four["decoding_per_second"] == pytest.approx(200)
    assert (alone["decoding_gain"], four["decoding_gain"]) == pytest.approx((1, 2))
    assert four["call_gain"] == pytest.approx(4 * 200 / 600)
    assert (alone["prefill_share"], four["prefill_share"]) == pytest.approx((100 / 200, 400 / 600))
    assert "batch 4 decodes 2.00 times" in finding_batches(gains)
    assert batching_table(gains)["prompts' share of a call"].iloc[-1] == "67%"


def test_what_lacks_a_second_batch_size_is_not_compared():
    params = study(batch_sizes=[1, 4], max_new_tokens=[11])
    gains = batching.batch_gains(metrics.speedups(along(known_rows(), params, "batch_size")))
    half = gains[(gains["temperature"] == 0) | (gains["batch_size"] == 1)]
    assert "batch 4 decodes 2.00 times" in finding_batches(half)
    for few in (gains[gains["batch_size"] == 1], gains.iloc[:0]):
        assert "fewer than two batch sizes" in finding_batches(few)
