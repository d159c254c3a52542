"""Every column of `results.parquet`, declared once: name, type, unit, meaning. Tables and reports are made from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, object]

TEXT, INTEGER, NUMBER, BOOLEAN = "text", "integer", "number", "boolean"
INTEGERS, NUMBERS = "list of integers", "list of numbers"


class Column(NamedTuple):
    """One column: its type is one of the six above, and `nullable` says whether a row may leave it undefined."""

    name: str
    type: str
    meaning: str
    unit: str = ""
    nullable: bool = True


def _always(name: str, kind: str, meaning: str, unit: str = "") -> Column:
    return Column(name, kind, meaning, unit, nullable=False)


COLUMNS: tuple[Column, ...] = (
    _always("run_id", TEXT, "the run that measured the row; its facts are in environment.json"),
    _always("cell_id", TEXT, "hash of everything that determines the cell"),
    _always("benchmark_version", INTEGER, "rows of different versions must not be compared"),
    _always("status", TEXT, "ok or failed"),
    Column("error", TEXT, "why the row failed"),
    _always("evidence", TEXT, "measured"),
    _always("gpu", TEXT, "name of the params"),
    _always("device_name", TEXT, "the device as it calls itself"),
    Column("host", TEXT, "name of the machine"),
    _always("engine", TEXT, "specdec_lib, or transformers for transformers.generate on the same weights"),
    _always("pair", TEXT, "name of the pair of target and draft"),
    _always("target_id", TEXT, "the target's weights"),
    Column("draft_id", TEXT, "the draft's weights, or the method where it needs none; null for the baseline"),
    _always("method", TEXT, "autoregressive, or the way to draft"),
    Column("verification", TEXT, "the rule that accepts draft tokens; null for the baseline"),
    Column(
        "draft_length", TEXT, "how many of gamma tokens a row drafts; fixed: all; null for the baseline and in old runs"
    ),
    Column("num_draft_tokens", INTEGER, "gamma: draft tokens of a step; null for the baseline", "tokens"),
    _always("temperature", NUMBER, "0 is greedy"),
    _always("top_k", INTEGER, "tokens kept; 0 keeps all", "tokens"),
    _always("top_p", NUMBER, "probability kept; 1 keeps all"),
    _always("dtype", TEXT, "of the weights and activations"),
    Column("threads", INTEGER, "CPU threads of each process; what a run on a CPU pays for"),
    Column("compiled", BOOLEAN, "whether the target's passes are compiled or C++ kernels"),
    Column("replayed", BOOLEAN, "whether steps were replays of CUDA graphs"),
    _always("batch_size", INTEGER, "rows decoded together"),
    Column("prompt_tokens", INTEGER, "exact length of each prompt; null for prompts as they are", "tokens"),
    _always("max_new_tokens", INTEGER, "tokens emitted for each prompt; where stop is natural, at most", "tokens"),
    Column("stop", TEXT, "fixed: all max_new_tokens are emitted; natural: a prompt ends at its first stop token"),
    Column("mean_prompt_tokens", NUMBER, "mean length of the row's prompts", "tokens"),
    _always("prompt_set", TEXT, "the prompts are of this set"),
    _always("prompt_group", INTEGER, "which prompts of the set; cells of one group are paired"),
    Column("prompt_ids", TEXT, "ids of the prompts, in the order of the batch"),
    Column("category", TEXT, "kind of the prompts; null for a batch of several kinds"),
    _always("repetition", INTEGER, "counts from 0"),
    _always("seed", INTEGER, "of every random number of the call"),
    Column("started_at", NUMBER, "when the row was begun, its warm-up included: seconds since 1970 (Unix time)", "s"),
    Column("tokens_sha256", TEXT, "for each prompt the first 16 hex digits of its new tokens' SHA-256"),
    Column("new_tokens", INTEGER, "emitted tokens over the batch", "tokens"),
    Column("steps", INTEGER, "target passes, counted once for every prompt that was still decoding"),
    Column("drafted_tokens", INTEGER, "draft tokens proposed", "tokens"),
    Column("tested_tokens", INTEGER, "draft tokens accepted or rejected", "tokens"),
    Column("accepted_tokens", INTEGER, "draft tokens emitted", "tokens"),
    Column("accepted_by_position", INTEGERS, "accepted tokens at each place of the draft", "tokens"),
    Column("tested_by_position", INTEGERS, "tested tokens at each place of the draft", "tokens"),
    Column("acceptance_rate", NUMBER, "alpha: accepted / tested"),
    Column("draft_efficiency", NUMBER, "accepted / drafted"),
    Column("mean_acceptance_length", NUMBER, "tokens emitted by a target pass", "tokens"),
    Column("stopped_prompts", INTEGER, "prompts whose text holds a stop token; this and the next: where stop is fixed"),
    Column(
        "tokens_to_stop",
        INTEGER,
        "emitted tokens up to the step with the first stop token of each prompt, that step included",
        "tokens",
    ),
    Column("tested_to_stop", INTEGER, "draft tokens accepted or rejected up to there", "tokens"),
    Column("accepted_to_stop", INTEGER, "draft tokens emitted up to there", "tokens"),
    Column("tpot_to_stop_ms", NUMBER, "tpot up to there, mean over the batch", "ms"),
    Column("tpot_past_stop_ms", NUMBER, "tpot from there on, mean over the batch", "ms"),
    Column("ttft_ms", NUMBER, "time to the first token of every prompt, all prefills included", "ms"),
    Column("tpot_ms", NUMBER, "(last token - first token) / (tokens - 1), mean over the batch", "ms"),
    Column("e2e_ms", NUMBER, "time of the whole call", "ms"),
    Column("itl_p50_ms", NUMBER, "gap between two tokens: 50th percentile", "ms"),
    Column("itl_p90_ms", NUMBER, "gap between two tokens: 90th percentile", "ms"),
    Column("itl_p99_ms", NUMBER, "gap between two tokens: 99th percentile", "ms"),
    Column("tokens_per_second", NUMBER, "emitted tokens over the batch / time of the whole call", "tokens/s"),
    Column("step_ms", NUMBERS, "time of each step", "ms"),
    Column("step_tokens", NUMBERS, "tokens that each step emitted, mean over the batch", "tokens"),
    Column("peak_memory_allocated_bytes", INTEGER, "most that PyTorch's CUDA allocator had handed out", "bytes"),
    Column("peak_memory_reserved_bytes", INTEGER, "most that PyTorch's CUDA allocator held", "bytes"),
    Column("device_memory_used_bytes", INTEGER, "in use on the device by all processes", "bytes"),
    Column("process_peak_rss_bytes", INTEGER, "most main memory that the process held", "bytes"),
    Column("gpu_utilization_percent", NUMBER, "share of time in which a kernel ran", "percent"),
    Column("energy_joules_per_token", NUMBER, "energy of the device / emitted tokens, prefill included", "J/token"),
    Column("throttled", BOOLEAN, "whether heat or power braking slowed the device; its power cap does not count"),
    Column("throttle_reasons", TEXT, "why clocks were lowered, in the driver's words"),
    Column("sm_clock_mhz", NUMBER, "median clock of the multiprocessors", "MHz"),
    Column("foreign_processes", INTEGER, "other processes that computed on the device"),
    Column("telemetry_note", TEXT, "why telemetry columns are null"),
    Column("drifted", BOOLEAN, "whether the TPOT of the block's baseline changed by more than 20 % in the run"),
    Column("cost_usd_per_million_tokens", NUMBER, "price of the device's time", "USD/million tokens"),
)
NAMES = frozenset(column.name for column in COLUMNS)


def check_columns(names: Iterable[str]) -> None:
    """Refuse a column that is not declared.

    Raises:
        ValueError: naming it.
    """
    if unknown := sorted(set(names) - NAMES):
        raise ValueError(
            f"{', '.join(unknown)}: no such column; declare it in COLUMNS of specdec_lib/study/rows/schema.py"
        )


def data_dictionary() -> pd.DataFrame:
    """The columns as a table for readers: column, type, unit, meaning, and whether it may be null."""
    import pandas as pd

    table = pd.DataFrame(COLUMNS).rename(columns={"name": "column", "nullable": "may be null"})
    return table[["column", "type", "unit", "meaning", "may be null"]]
