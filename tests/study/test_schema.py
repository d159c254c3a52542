"""Every column is declared once; what is written and read follows the declaration."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_rows import synthetic_rows

from specdec_lib.study.rows.schema import COLUMNS, data_dictionary
from specdec_lib.study.rows.table import SCHEMA, read_results, write_results
from specdec_lib.study.run_folder import read_cell, write_cell

CONTRACT = [
    *("run_id", "cell_id", "benchmark_version", "status", "error", "evidence"),
    *("gpu", "device_name", "engine", "pair", "target_id", "draft_id", "method", "verification", "num_draft_tokens"),
    *("temperature", "top_k", "top_p", "dtype", "compiled", "batch_size", "prompt_tokens", "max_new_tokens"),
    *("prompt_set", "category", "repetition", "seed"),
    *("new_tokens", "steps", "drafted_tokens", "tested_tokens", "accepted_tokens", "accepted_by_position"),
    *("acceptance_rate", "draft_efficiency", "mean_acceptance_length"),
    *("ttft_ms", "tpot_ms", "e2e_ms", "itl_p50_ms", "itl_p90_ms", "itl_p99_ms", "tokens_per_second"),
    *("peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "device_memory_used_bytes"),
    *("process_peak_rss_bytes", "gpu_utilization_percent", "energy_joules_per_token", "throttled"),
    "cost_usd_per_million_tokens",
]  # the columns that every run promises


def a_row(**changes):
    """One measured row, as it lies in the file of its cell."""
    (row,) = json.loads(synthetic_rows().head(1).to_json(orient="records"))
    return row | changes


def test_the_columns_of_the_contract_are_there_in_their_order():
    assert [name for name in SCHEMA.names if name in CONTRACT] == CONTRACT


def test_the_data_dictionary_explains_every_column():
    table = data_dictionary()
    assert table["column"].tolist() == SCHEMA.names
    assert table["meaning"].str.len().between(5, 100).all()
    units = table.set_index("column")["unit"]
    assert all(units[name] == "ms" for name in SCHEMA.names if name.endswith("_ms"))
    assert all(units[name] == "bytes" for name in SCHEMA.names if name.endswith("_bytes"))
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)


def test_a_column_that_is_not_declared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="colour: no such column; declare it in COLUMNS"):
        write_cell(tmp_path, "a", [a_row(colour="red")])
    assert not read_cell(tmp_path, "a")


def test_what_is_written_is_read_back_with_its_price_and_undefined_is_null(tmp_path):
    write_cell(tmp_path, "a", [a_row(tokens_per_second=100.0)])
    (row,) = write_results(tmp_path, ["a"], usd_per_hour=0.36).itertuples()
    assert row.cost_usd_per_million_tokens == pytest.approx(1.0)
    assert row.energy_joules_per_token is pd.NA


def test_a_column_that_every_row_must_have_may_not_be_null(tmp_path):
    write_cell(tmp_path, "a", [a_row(pair=None)])
    with pytest.raises(pa.ArrowInvalid, match="pair"):
        write_results(tmp_path, ["a"], usd_per_hour=1.0)


def test_a_table_of_an_earlier_version_has_todays_columns(tmp_path):
    """Of its own columns those that are gone are dropped; those that came later are null, with their type."""
    table = synthetic_rows().drop(columns=["e2e_ms", "drifted", "category"]).assign(of_old=1)
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), tmp_path / "results.parquet")
    found = read_results(tmp_path)
    assert found.columns.tolist() == SCHEMA.names
    assert found[["e2e_ms", "drifted", "category"]].isna().all().all()
    assert found["e2e_ms"].dtype == "Float64"
    assert found["tpot_ms"].tolist() == table["tpot_ms"].tolist()


def test_reading_results_before_a_run_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="make run"):
        read_results(tmp_path)
