"""A run on a CPU pays for the threads that it computed with, a run on GPUs for these."""

import pandas as pd
import pytest
import torch
from toy_sweep import toy_params

from specdec_lib.hardware.catalog import price
from specdec_lib.params_files import load_params
from specdec_lib.report.captions.cost import price_note
from specdec_lib.study.rows.table import price_of_run
from specdec_lib.study.sweep import run_sweep_here

CPU, LISTED = load_params("cpu"), price("cpu-2-vcpu")


@pytest.mark.parametrize(("threads", "share"), [(1, 0.5), (2, 1), (16, 8)])
def test_a_thread_costs_a_virtual_cpu(threads, share):
    found = price_of_run(CPU, threads)
    assert found.usd_per_hour == pytest.approx(share * LISTED.usd_per_hour)
    assert ("2 vCPU of" in price_note(found)) == (threads == 2 and False) or f"{threads} vCPU of AWS" in price_note(
        found
    )


def test_processes_that_share_a_target_are_paid_together():
    assert price_of_run(CPU.model_copy(update={"tensor_parallel": 2}), 1) == LISTED


def test_rows_of_earlier_versions_cost_what_is_listed():
    assert price_of_run(CPU, pd.NA) == LISTED


def test_gpus_are_paid_whatever_the_host_does():
    params = load_params("h100").model_copy(update={"tensor_parallel": 4})
    assert price_of_run(params, 64) == price(params.price).times(4)


def test_rows_say_their_threads_and_are_priced_by_them(tmp_path):
    before, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        rows = run_sweep_here(toy_params(), tmp_path)
    finally:
        torch.set_num_threads(before)
    assert set(rows["threads"]) == {1}
    dollars = rows["cost_usd_per_million_tokens"] * rows["tokens_per_second"] * 3600 / 1e6
    assert dollars.to_numpy() == pytest.approx(LISTED.usd_per_hour / 2)
    assert not found
