"""The tables of the latency and of the cost study for readers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from specdec_lib.analysis.metrics import MEMORY, OWN_ENGINE
from specdec_lib.analysis.waterfall import STAGES
from specdec_lib.methods import AUTOREGRESSIVE, label
from specdec_lib.report.captions.phrases import where_it_pays
from specdec_lib.report.captions.verdict import speedup_text
from specdec_lib.report.tables.readable import SETTING, UNDEFINED, readable
from specdec_lib.study.rows.drift import BLOCK, LIMIT

NUMBERS = ("speedup", "whole calls", "TPOT (ms)", "acceptance", "tokens per pass")


def method_table(lines: pd.DataFrame) -> pd.DataFrame:
    """A line per method, its numbers at each temperature: what README, index and 02 print of `analysis.headline`."""
    table: dict[str, dict[str, str]] = {}
    for line in lines.itertuples():
        gamma = UNDEFINED if pd.isna(line.num_draft_tokens) else f"{line.num_draft_tokens}"
        row = table.setdefault(line.method, {"method": label(line.method), "γ": gamma})
        row |= {_at(name, line.temperature): value for name, value in zip(NUMBERS, _numbers_of(line), strict=True)}
    columns = [_at(name, temperature) for temperature in sorted(set(lines["temperature"])) for name in NUMBERS]
    made = pd.DataFrame(list(table.values()), columns=["method", "γ", *columns]).fillna(UNDEFINED)
    return made.assign(evidence="measured")


def _at(name: str, temperature: float) -> str:
    return f"{name}, T = {temperature:g}"


def _numbers_of(line: Any) -> list[str]:
    """Speedup of the time per token and of whole calls, time per token, acceptance, and tokens of a target pass."""
    values = [
        (line.speedup, speedup_text(line)),
        (line.e2e_speedup, speedup_text(line, "e2e_speedup")),
        (line.tpot_ms, f"{line.tpot_ms:.2f}"),
        (line.acceptance_rate, f"{line.acceptance_rate:.3f}"),
        (line.mean_acceptance_length, f"{line.mean_acceptance_length:.2f}"),
    ]
    return [UNDEFINED if pd.isna(value) else text for value, text in values]


def speedup_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Speedup with interval, and the acceptance that explains it."""
    columns = ["speedup", "num_prompts", "acceptance_rate", "draft_efficiency", "mean_acceptance_length"]
    return readable(lines, [*SETTING, *columns, "evidence"])


def alternatives_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Draft lengths or verification rules against the usual one; from `alternatives.compared_alternatives`."""
    columns = ["method", "temperature", "draft_length", "verification", "num_draft_tokens", "speedup", "gain"]
    return readable(
        lines, [*columns, "acceptance_rate", "draft_efficiency", "mean_acceptance_length", "num_prompts", "evidence"]
    )


def latency_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Time to first token, per token and between tokens, throughput and peak memory."""
    columns = ["ttft_ms", "tpot_ms", "itl_p50_ms", "itl_p90_ms", "itl_p99_ms", "tokens_per_second"]
    memory = [name for name in MEMORY if lines[name].notna().any()]
    return readable(lines, [*SETTING, *columns, *memory, "evidence"])


def cost_columns(costs: pd.DataFrame) -> pd.DataFrame:
    """Dollars and break-even price ratio."""
    columns = ["tokens_per_second", "usd_per_million_tokens", "break_even_price_ratio"]
    return readable(costs, [*SETTING, *columns, "evidence"])


def batching_table(gains: pd.DataFrame) -> pd.DataFrame:
    """What a batch gives; from `batching.batch_gains`."""
    columns = ["method", "temperature", "batch_size", "decoding_per_second", "decoding_gain", "tokens_per_second"]
    columns += ["call_gain", "prefill_share", "num_prompts", "mean_prompt_tokens", "evidence"]
    return readable(gains, columns)


def stop_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Acceptance and speedup up to a text's own stop and after it; from `stops.stop_lines`."""
    columns = ["method", "num_draft_tokens", "temperature", "part", "tokens_share", "acceptance_rate", "speedup"]
    return readable(lines, [*columns, "num_prompts", "evidence"])


def crossover_table(crossovers: pd.DataFrame) -> pd.DataFrame:
    """B* of every setting, and where speculation pays; from `analysis.sweep.crossover`."""
    pays = [where_it_pays(line) for line in crossovers.itertuples()]
    columns = ["gpu", "pair", "method", "num_draft_tokens", "temperature", "prompt_tokens", "crossover_batch"]
    return readable(crossovers.assign(pays=pays), [*columns, "pays", "evidence"])


def verification_table(lines: pd.DataFrame) -> pd.DataFrame:
    """v(m) and c; from `step_table.verification_costs`."""
    columns = ["batch_size", "context_tokens", "num_tokens", "pass_ms", "verification_cost", "cost_ratio"]
    return readable(lines, [*columns, "evidence"])


def waterfall_table(stages: pd.DataFrame) -> pd.DataFrame:
    """Every line with its speedup after every stage; all but the last stage are predicted."""
    stages = stages.assign(evidence="predicted, last stage measured")
    return readable(stages, [*SETTING[1:], *STAGES, "unexplained", "evidence"])


def trouble_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Every row that failed, was skipped, or does not count, with its reason; empty if all went well.

    A row does not count where the device lowered its clock, was used by others too, or changed its speed; it has a line
    for each reason. Of a block that drifted only the last baseline row is listed: the flag is of the block.

    Args:
        rows: the results table.
    """
    ok = rows["status"] == "ok"
    foreign = rows["foreign_processes"].fillna(0).astype(int)
    throttling = [
        "the device lowered its clock" + ("" if pd.isna(why) else f" ({why})") for why in rows["throttle_reasons"]
    ]
    baseline = ok & (rows["engine"] == OWN_ENGINE) & (rows["method"] == AUTOREGRESSIVE)
    drifted = rows[baseline & rows["drifted"].fillna(False).astype(bool)].sort_values("repetition")
    last = drifted.drop_duplicates(list(BLOCK), keep="last")
    found = [
        (~ok, rows["status"], rows["error"].fillna("no reason was recorded")),
        (rows.index.isin(last.index), "drifted", f"the baseline's TPOT changed by over {LIMIT:.0%} in this block"),
        (ok & (foreign > 0), "shared", foreign.map("{} other process(es) used the device".format)),
        (ok & rows["throttled"].fillna(False).astype(bool), "throttled", throttling),
    ]
    table = pd.concat([rows.assign(what=what, reason=reason)[here] for here, what, reason in found])
    table = table.sort_index(kind="stable").reset_index(drop=True)
    return readable(table, [*SETTING, "prompt_group", "repetition"]).join(table[["what", "reason"]])
