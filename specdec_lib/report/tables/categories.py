"""The table of categories for readers."""

from __future__ import annotations

import pandas as pd

from specdec_lib.report.tables.readable import readable


def category_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Speedup, number of prompts and acceptance of every category; from `categories.category_lines`."""
    columns = ["temperature", "category", "method", "num_draft_tokens", "speedup", "num_prompts", "acceptance_rate"]
    lines = lines.sort_values(["temperature", "category", "method"], kind="stable", ignore_index=True)
    return readable(lines, [*columns, "mean_acceptance_length", "evidence"])
