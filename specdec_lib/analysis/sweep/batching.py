"""What a batch gives: tokens per second while decoding and over whole calls, against the smallest batch."""

from __future__ import annotations

import pandas as pd

CURVE = ["method", "temperature"]  # each is compared with itself at the smallest batch


def batch_gains(lines: pd.DataFrame) -> pd.DataFrame:
    """Throughput of every method and temperature by batch size, and its ratio to that of the smallest batch.

    `tokens_per_second` is of whole calls, `decoding_per_second` of what follows the first tokens. `prefill_share` is
    the share of a call before the first tokens: a batch makes decoding cheaper, but hardly the reading of prompts.
    Nothing is paired, as batches hold other prompts: `mean_prompt_tokens` and `num_prompts` say how far these differ.

    Args:
        lines: from `headline.along(lines, params, "batch_size")`.
    """
    gains = lines[lines["tokens_per_second"].notna()].sort_values([*CURVE, "batch_size"])
    after_the_first = (1 - 1 / gains["max_new_tokens"]).where(gains["max_new_tokens"] > 1)  # one token is not decoding
    gains["decoding_per_second"] = gains["tokens_per_second"] * after_the_first / (1 - gains["prefill_share"])
    smallest = gains.groupby(CURVE)[["decoding_per_second", "tokens_per_second"]].transform("first")
    gains["decoding_gain"] = gains["decoding_per_second"] / smallest["decoding_per_second"]
    gains["call_gain"] = gains["tokens_per_second"] / smallest["tokens_per_second"]
    columns = [*CURVE, "batch_size", "decoding_per_second", "decoding_gain", "tokens_per_second", "call_gain"]
    return gains[[*columns, "prefill_share", "mean_prompt_tokens", "num_prompts", "evidence"]].reset_index(drop=True)
