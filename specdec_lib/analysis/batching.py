"""What a batch gives: tokens per second while decoding and over whole calls, against one row at a time."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.metrics import BASELINE
from specdec_lib.report.figures.style import METHOD_NAMES

ALONE = ["method", "temperature"]  # each compared with itself at the smallest batch


def batch_gains(lines: pd.DataFrame) -> pd.DataFrame:
    """Throughput of every method and temperature by batch size, and how many times that of the smallest batch it is.

    `tokens_per_second` is of whole calls, `decoding_per_second` of what follows the first tokens. Between them stands
    `prefill_share`, the share of a call until then: a long pass computes as long for each row of a batch as for one
    alone, so that a batch makes decoding cheaper, but hardly the reading of prompts. Batches hold other prompts than
    one row alone, and nothing is paired: `mean_prompt_tokens` and `num_prompts` (groups) say how far they differ.

    Args:
        lines: from `metrics.along(lines, params, "batch_size")`.
    """
    gains = lines[lines["tokens_per_second"].notna()].sort_values([*ALONE, "batch_size"])
    behind_the_first = 1 - 1 / gains["max_new_tokens"]
    gains["decoding_per_second"] = gains["tokens_per_second"] * behind_the_first / (1 - gains["prefill_share"])
    smallest = gains.groupby(ALONE)[["decoding_per_second", "tokens_per_second"]].transform("first")
    gains["decoding_gain"] = gains["decoding_per_second"] / smallest["decoding_per_second"]
    gains["call_gain"] = gains["tokens_per_second"] / smallest["tokens_per_second"]
    columns = [*ALONE, "batch_size", "decoding_per_second", "decoding_gain", "tokens_per_second", "call_gain"]
    columns += ["prefill_share", "mean_prompt_tokens", "num_prompts", "evidence"]
    return gains[columns].reset_index(drop=True)


def finding_batches(gains: pd.DataFrame) -> str:
    """How many times the throughput the largest batch gives without speculation, and what prompts take of it."""
    baseline = gains[gains["method"] == BASELINE]
    parts, ends = [], []
    for temperature, curve in baseline.groupby("temperature"):
        first, last = curve.iloc[0], curve.iloc[-1]
        if first["batch_size"] == last["batch_size"]:
            continue
        ends += [first, last]
        decodes = f"batch {last['batch_size']} decodes {last['decoding_gain']:.2f} times the tokens per second"
        calls = (
            f"{last['call_gain']:.2f} times over whole calls, of which {last['prefill_share']:.0%} is reading prompts"
        )
        alone = f"({first['prefill_share']:.0%} at batch {first['batch_size']})"
        parts.append(f"at T = {temperature:g} {decodes} of batch {first['batch_size']}, and {calls} {alone}")
    if not parts:
        return "Without speculation fewer than two batch sizes were measured."
    tokens = pd.DataFrame(ends).groupby("batch_size")["mean_prompt_tokens"].mean()
    lengths = ", ".join(f"{count:.0f} at batch {batch}" for batch, count in tokens.items())
    return f"Without speculation: {'; '.join(parts)}. Tokens of a prompt, on average: {lengths}."


def batching_table(gains: pd.DataFrame) -> pd.DataFrame:
    """The gains for readers."""
    return pd.DataFrame(
        {
            "method": gains["method"].replace(METHOD_NAMES),
            "T": gains["temperature"].map("{:g}".format),
            "batch": gains["batch_size"],
            "decoding (tokens/s)": gains["decoding_per_second"].map("{:.1f}".format),
            "decoding gain (×)": gains["decoding_gain"].map("{:.2f}".format),
            "whole calls (tokens/s)": gains["tokens_per_second"].map("{:.1f}".format),
            "whole-call gain (×)": gains["call_gain"].map("{:.2f}".format),
            "prompts' share of a call": gains["prefill_share"].map("{:.0%}".format),
            "prompt groups": gains["num_prompts"],
            "tokens of a prompt": gains["mean_prompt_tokens"].map("{:.0f}".format),
            "evidence": gains["evidence"],
        }
    )
