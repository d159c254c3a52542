"""Look up measured costs of the pieces of a step, between the contexts and token counts that were measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from specdec_lib.analysis.metrics import OWN_ENGINE
from specdec_lib.machine.step_costs import FILE, KEY

COLUMNS = [*KEY, "ms", "samples_ms", "replayed"]
UNUSED = "The costs of the pieces of a step were timed {timed}, while steps of the rows were {ran}: not used."
HOW = {False: "by calling them one operation at a time", True: "captured and replayed"}
NEAR = 0.5  # a context is served by the nearest measured one up to this share of it away


def read_step_costs(folder: Path) -> pd.DataFrame:
    """The rows of a run's `step_costs.json`; none if the costs could not be measured.

    Raises:
        ValueError: there is no such file yet.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: run the study first, with make run GPU=<name>")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    costs = pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"temperature": "float64"})
    return costs.assign(replayed=costs["replayed"].eq(True))  # earlier files do not say: they called all pieces


def why_unused(costs: pd.DataFrame, rows: pd.DataFrame) -> str | None:
    """Why these costs are none of these rows' steps; None if they are.

    A captured step starts nothing on the host, so that one operation at a time would cost what no row has paid.

    Args:
        costs: column `replayed`; without it, all pieces were called.
        rows: results of the same run, of which the library's own are looked at, with the same mark.
    """
    if costs.empty or "replayed" not in rows:
        return None
    timed = "replayed" in costs and bool(costs["replayed"].any())
    ran = bool(rows.loc[rows["engine"] == OWN_ENGINE, "replayed"].eq(True).any())
    return None if timed == ran else UNUSED.format(timed=HOW[timed], ran=HOW[ran])


def costs_of(rows: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """The costs if they are of these rows' steps, or none: see `why_unused`."""
    return costs.iloc[:0] if why_unused(costs, rows) else costs


class StepTable:
    """The table of `step_costs.json`.

    Args:
        costs: columns `model` ("target", "draft", and where measured "ngram" and "sampling"), `batch_size`,
            `context_tokens`, `num_tokens`, `ms`, and where it matters `temperature`.
    """

    def __init__(self, costs: pd.DataFrame):
        self.costs = costs if "temperature" in costs else costs.assign(temperature=np.nan)

    def ms(self, model: str, batch: int, context: float, tokens: int, temperature: float | None = None) -> float:
        """Milliseconds, interpolated over the context and the token count; NaN where nothing near was measured.

        Beyond the measured contexts the nearest one stands in, up to `NEAR` of it away; token counts must be between
        measured ones.

        A temperature that was not measured is served by those that were.
        """
        here = self.costs[(self.costs["model"] == model) & (self.costs["batch_size"] == batch)]
        same = here[here["temperature"] == temperature]
        here = here if same.empty else same
        if here.empty or not here["num_tokens"].min() <= tokens <= here["num_tokens"].max():
            return float("nan")
        low, high = here["context_tokens"].min(), here["context_tokens"].max()
        if not (1 - NEAR) * low <= context <= (1 + NEAR) * high:
            return float("nan")
        grid = here.pivot_table(index="num_tokens", columns="context_tokens", values="ms").sort_index()
        by_context = [np.interp(tokens, grid.index, grid[column].interpolate()) for column in grid]
        return float(np.interp(context, grid.columns, by_context))

    def cost_ratio(self, batch: int, context: float, num_draft_tokens: int, temperature: float | None = None) -> float:
        """The paper's c: drafting one token over one pass of the target over one token."""
        drafting = self.ms("draft", batch, context, num_draft_tokens, temperature)
        return drafting / num_draft_tokens / self.ms("target", batch, context, 1, temperature)

    def verification_cost(self, batch: int, context: float, tokens: int) -> float:
        """v(m): a pass of the target over `tokens` tokens over one."""
        return self.ms("target", batch, context, tokens) / self.ms("target", batch, context, 1)
