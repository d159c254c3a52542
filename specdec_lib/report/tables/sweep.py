"""Tables for readers: lines with human headings, units and rounded numbers. Undefined stays visible as an en dash."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from specdec_lib.report.figures.style import METHOD_NAMES
from specdec_lib.study.drift import BLOCK, LIMIT

_SETTING = {
    "engine": "engine",
    "method": "method",
    "num_draft_tokens": "γ",
    "temperature": "T",
    "batch_size": "batch",
    "prompt_tokens": "prompt",
    "max_new_tokens": "output",
}
_NUMBERS = {  # column: heading, format
    "speedup": ("speedup (×)", "{:.2f}"),
    "num_prompts": ("prompt groups", "{:d}"),
    "acceptance_rate": ("acceptance rate", "{:.3f}"),
    "draft_efficiency": ("draft efficiency", "{:.3f}"),
    "mean_acceptance_length": ("tokens per target pass", "{:.2f}"),
    "ttft_ms": ("TTFT (ms)", "{:.1f}"),
    "tpot_ms": ("TPOT (ms)", "{:.2f}"),
    "itl_p50_ms": ("ITL p50 (ms)", "{:.2f}"),
    "itl_p90_ms": ("ITL p90 (ms)", "{:.2f}"),
    "itl_p99_ms": ("ITL p99 (ms)", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:.1f}"),
    "usd_per_million_tokens": ("$ per million tokens", "{:#.3g}"),
    "break_even_price_ratio": ("break-even price ratio", "{:.2f}"),
}
_MEMORY = {
    "peak_memory_allocated_bytes": "peak allocated (MiB)",
    "peak_memory_reserved_bytes": "peak reserved (MiB)",
    "device_memory_used_bytes": "device memory used (MiB)",
    "process_peak_rss_bytes": "peak memory of the process (MiB)",
}
UNDEFINED = "–"


def speedup_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Speedup with interval, and the acceptance that explains it."""
    columns = ["speedup", "num_prompts", "acceptance_rate", "draft_efficiency", "mean_acceptance_length"]
    return _readable(lines, columns, interval="speedup")


def latency_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Time to first token, per token and between tokens, throughput and peak memory."""
    columns = ["ttft_ms", "tpot_ms", "itl_p50_ms", "itl_p90_ms", "itl_p99_ms", "tokens_per_second"]
    return _readable(lines, columns, memory=[name for name in _MEMORY if lines[name].notna().any()])


def cost_columns(costs: pd.DataFrame) -> pd.DataFrame:
    """Dollars and break-even price ratio."""
    columns = ["tokens_per_second", "usd_per_million_tokens", "break_even_price_ratio"]
    return _readable(costs, columns, interval="break_even_price_ratio")


def trouble_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Every row that failed, was skipped, or is kept out of all lines, with its reason; empty if all went well.

    That is where the device lowered its clock, was used by others too, or changed its speed; a row has a line for each.

    Of a block that drifted only the last baseline row: the flag is of the block.

    Args:
        rows: the results table.
    """
    ok, foreign = rows["status"] == "ok", rows["foreign_processes"].fillna(0).astype(int)
    kept_out = {
        "drifted": (
            _last_of_drifted_blocks(rows),
            pd.Series(f"the baseline's TPOT changed by over {LIMIT:.0%} in this block", rows.index),
        ),
        "shared": (ok & (foreign > 0), foreign.map("{} other process(es) used the device".format)),
        "throttled": (ok & rows["throttled"].fillna(False).astype(bool), _throttling(rows)),
    }
    listed = [(rows[~ok], rows["status"], rows["error"].fillna("no reason was recorded"))]
    listed += [(rows[here], pd.Series(name, rows.index), reason) for name, (here, reason) in kept_out.items()]
    tables = [
        _setting(some).assign(
            **{"prompt group": some["prompt_group"], "repetition": some["repetition"]},
            what=what[some.index],
            reason=reason[some.index],
        )
        for some, what, reason in listed
    ]
    return pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)


def _throttling(rows: pd.DataFrame) -> pd.Series:
    named = ["" if pd.isna(reasons) else f" ({reasons})" for reasons in rows["throttle_reasons"]]
    return pd.Series(named, index=rows.index).radd("the device lowered its clock")


def _last_of_drifted_blocks(rows: pd.DataFrame) -> pd.Series:
    baseline = (rows["engine"] == "specdec_lib") & (rows["method"] == "autoregressive")
    drifted = rows[baseline & (rows["status"] == "ok") & rows["drifted"].fillna(False).astype(bool)]
    last = drifted.sort_values("repetition").drop_duplicates(list(BLOCK), keep="last")
    return pd.Series(rows.index.isin(last.index), index=rows.index)


def _readable(lines: pd.DataFrame, columns: list[str], interval: str = "", memory: Sequence[str] = ()) -> pd.DataFrame:
    """Setting, then numbers; the interval of one of them stands beside it."""
    table = _setting(lines)
    for name in columns:
        heading, form = _NUMBERS[name]
        table[heading] = [_text(value, form) for value in lines[name]]
        if name == interval:
            ends = zip(lines[f"{name}_low"], lines[f"{name}_high"], strict=True)
            table["95 % interval"] = [UNDEFINED if pd.isna(low) else f"{low:.2f} to {high:.2f}" for low, high in ends]
    for name in memory:
        heading = _MEMORY[name]
        table[heading] = [_text(value / 2**20 if pd.notna(value) else value, "{:.0f}") for value in lines[name]]
    table["evidence"] = lines["evidence"].to_numpy()
    return table.reset_index(drop=True)


def _setting(lines: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame({heading: lines[name].astype(object) for name, heading in _SETTING.items()})
    table["T"] = [f"{temperature:g}" for temperature in lines["temperature"]]
    table["method"] = lines["method"].replace(METHOD_NAMES)
    table["prompt"] = table["prompt"].where(lines["prompt_tokens"].notna(), "natural")
    return table.where(table.notna(), UNDEFINED)


def _text(value: float, form: str) -> str:
    return UNDEFINED if pd.isna(value) else form.format(value)
