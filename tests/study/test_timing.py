"""Raw times to latencies."""

import pytest
import torch

from specdec_lib.decoding.result import DecodeResult
from specdec_lib.study.rows.columns import latency_columns


def test_latencies_of_a_known_timeline():
    result = DecodeResult([torch.zeros(4, dtype=torch.int64)], ttft_s=0.1, step_s=[0.2, 0.1], step_tokens=[[2], [1]])
    columns = latency_columns(result)
    assert columns["ttft_ms"] == pytest.approx(100)
    assert columns["tpot_ms"] == pytest.approx(100)  # (0.4 - 0.1) / 3
    assert columns["e2e_ms"] == pytest.approx(400)
    assert columns["itl_p50_ms"] == pytest.approx(100)  # gaps 200, 0, 100
    assert columns["tokens_per_second"] == pytest.approx(10)


def test_a_single_token_has_no_tpot():
    columns = latency_columns(DecodeResult([torch.zeros(1)], ttft_s=0.1, step_s=[], step_tokens=[]))
    assert columns["tpot_ms"] is None
    assert columns["itl_p50_ms"] is None
