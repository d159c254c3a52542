"""Look up the measured costs of the pieces of a step, between the contexts and token counts that were measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from specdec_lib.analysis.metrics import OWN_ENGINE
from specdec_lib.methods import METHODS

FILE = "step_costs.json"  # as `machine.step_costs` writes it
COLUMNS = ["model", "batch_size", "context_tokens", "num_tokens", "temperature", "ms", "samples_ms", "replayed"]
UNUSED = "Not used: the pieces of a step were timed {timed}, but the steps of the rows were {ran}."
HOW = {False: "one operation at a time", True: "captured and replayed"}
NEAR = 0.5  # the nearest measured context is used up to this share of it away


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
    return costs.assign(replayed=costs["replayed"].eq(True))  # older files lack the mark: none was replayed


def why_unused(costs: pd.DataFrame, rows: pd.DataFrame) -> str | None:
    """Why these costs do not describe the steps of these rows; None if they do.

    A captured step starts nothing on the host. Pieces that were timed one operation at a time cost more than it pays.

    Args:
        costs: column `replayed`; without it, no piece was replayed.
        rows: results of the same run; the mark `replayed` of the library's own rows counts.
    """
    if costs.empty or "replayed" not in rows:
        return None
    timed = "replayed" in costs and bool(costs["replayed"].any())
    ran = bool(rows.loc[rows["engine"] == OWN_ENGINE, "replayed"].eq(True).any())
    return None if timed == ran else UNUSED.format(timed=HOW[timed], ran=HOW[ran])


def costs_of(rows: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """The costs if they describe the steps of these rows, or none: see `why_unused`."""
    return costs.iloc[:0] if why_unused(costs, rows) else costs


class StepTable:
    """The table of `step_costs.json`.

    Args:
        costs: columns `model` ("target", and where measured "sampling" and the pieces of methods), `batch_size`,
            `context_tokens`, `num_tokens`, `ms`, and where it matters `temperature`.
    """

    def __init__(self, costs: pd.DataFrame):
        self.costs = costs if "temperature" in costs else costs.assign(temperature=np.nan)
        self._grids: dict[tuple[str, int, float | None], pd.DataFrame] = {}

    def ms(self, model: str, batch: int, context: float, tokens: float, temperature: float | None = None) -> float:
        """Milliseconds, interpolated over the context and the token count; NaN where nothing near was measured.

        Beyond the measured contexts the nearest one counts, up to `NEAR` of it away. Token counts must lie between
        measured ones. For a temperature that was not measured, all measured ones count.
        """
        key = (model, batch, temperature)
        if key not in self._grids:
            self._grids[key] = self._grid(*key)
        grid = self._grids[key]
        if grid.empty or not grid.index[0] <= tokens <= grid.index[-1]:
            return float("nan")
        if not (1 - NEAR) * grid.columns[0] <= context <= (1 + NEAR) * grid.columns[-1]:
            return float("nan")
        by_context = [np.interp(tokens, grid.index, column) for column in grid.to_numpy().T]
        return float(np.interp(context, grid.columns, by_context))

    def _grid(self, model: str, batch: int, temperature: float | None) -> pd.DataFrame:
        """Milliseconds by number of tokens and context, both rising."""
        here = self.costs[(self.costs["model"] == model) & (self.costs["batch_size"] == batch)]
        same = here[here["temperature"] == temperature]
        here = here if same.empty else same
        return here.pivot_table(index="num_tokens", columns="context_tokens", values="ms").sort_index().interpolate()

    def drafting_ms(
        self, method: str, batch: int, context: float, num_draft_tokens: int, temperature: float | None = None
    ) -> float:
        """Milliseconds to draft so many tokens by a method: the sum of its pieces; NaN for an unregistered method."""
        if method not in METHODS:
            return float("nan")
        pieces = METHODS[method].pieces
        return sum((self.ms(piece, batch, context, num_draft_tokens, temperature) for piece in pieces), start=0.0)


def verification_costs(costs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each batch size, context and number of tokens m that a pass of the target was timed with.

    `verification_cost` is v(m): the pass over m tokens of each row, over the pass over one. `cost_ratio` is c: the time
    to draft m tokens with the pair's draft, divided by m, over the same; NaN beyond what was timed. Both are medians
    over temperatures.

    Args:
        costs: the step costs of a run; not used if `why_unused` says so.
        rows: the results table of the run.
    """
    costs, piece = costs_of(rows, costs), ["model", "batch_size", "context_tokens", "num_tokens"]
    table = StepTable(costs.groupby(piece)["ms"].median().reset_index())
    timed, lines = table.costs[table.costs["model"] == "target"], []
    for batch, context, tokens in timed[piece[1:]].itertuples(index=False):
        one, many = (table.ms("target", batch, context, count) for count in (1, tokens))
        drafting = table.ms("draft", batch, context, tokens) / tokens
        lines.append((batch, context, tokens, many, many / one, drafting / one))
    return pd.DataFrame(lines, columns=[*piece[1:], "pass_ms", "verification_cost", "cost_ratio"]).assign(
        evidence="measured"
    )
