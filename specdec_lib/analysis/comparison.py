"""Runs of several machines side by side; what must not be mixed is refused, and what is not measured is predicted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from specdec_lib.analysis import metrics
from specdec_lib.analysis.cost import on_front
from specdec_lib.analysis.gpu_predictions import predict
from specdec_lib.config import StudyParams, available_params, load_params, params_of_run
from specdec_lib.hardware.catalog import Price, load_gpus, load_prices, price, usd_per_million_tokens
from specdec_lib.models.presets import PRESETS
from specdec_lib.study.table import read_results

SKIPPED = ("smoke",)  # toys, which say nothing of a machine
BATCHES = [2**power for power in range(10)]  # for predicted crossovers
SIDE_BY_SIDE = ["gpu", "product", "pair", "dtype", "method", "num_draft_tokens", "temperature", "batch_size"]
SIDE_BY_SIDE += ["prompt_tokens", "max_new_tokens", "tpot_ms", "tpot_ms_low", "tpot_ms_high"]
SIDE_BY_SIDE += ["speedup", "speedup_low", "speedup_high"]
SIDE_BY_SIDE += ["tokens_per_second", "acceptance_rate", "memory_bytes", "joules_per_token", "usd_per_million_tokens"]
SIDE_BY_SIDE += ["evidence"]
SAME_WORK = ["pair", "dtype", "temperature", "evidence"]


@dataclass(frozen=True)
class Run:
    """The outputs of one study on one product."""

    params: StudyParams
    product: str  # a key of gpus.yaml with its power limit where that was changed, or the name of the processor
    rows: pd.DataFrame
    price: Price
    folder: Path

    @property
    def lines(self) -> pd.DataFrame:
        """One line per setting, as `metrics.speedups`."""
        return metrics.speedups(self.rows)


def find_runs(outputs: Path, gpus: Sequence[str] = ()) -> list[Run]:
    """The finished runs below `outputs`, all of them or those named; checked one by one and against each other.

    Raises:
        ValueError: a folder whose rows come from several products or settings, a price of another product, or runs of
            different benchmark versions; names the folder and a row.
    """
    folders = [path.parent for path in sorted(Path(outputs).glob("*/results.parquet"))]
    chosen = [folder for folder in folders if (folder.name in gpus if gpus else folder.name not in SKIPPED)]
    runs = [read_run(folder) for folder in chosen]
    check_versions(runs)
    return runs


def read_run(folder: Path) -> Run:
    """One run, if its rows are of one product, pair and dtype, and its price is of that product.

    Raises:
        ValueError: naming the folder and a row that does not belong.
    """
    rows = read_results(folder)
    for column in ("device_name", "pair", "dtype", "benchmark_version"):
        _check_one(rows, column, folder.name)
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    params = params_of_run(environment, source=f"{folder.name}/environment.json")
    entry = price(_current_price(params))
    device = str(rows["device_name"].iloc[0])
    product = _product(environment, device)
    if params.device == "cuda" and entry.gpu != product.split(" at ")[0]:
        raise ValueError(
            f"{folder.name}: price {_current_price(params)} is of {entry.gpu}, but the run was on {product}: "
            f"name a price of that product in params/{params.gpu}.yaml, or add one to hardware/prices.yaml"
        )
    if params.num_devices > 1:
        product, entry = f"{params.num_devices} x {product}", entry.times(params.num_devices)
    return Run(params, product, rows, entry, folder)


def check_versions(runs: Iterable[Run]) -> None:
    """Refuse runs whose rows must not be compared.

    Raises:
        ValueError: two benchmark versions; names a row of each.
    """
    first: dict[int, str] = {}
    for run in runs:
        row = run.rows.iloc[0]
        first.setdefault(int(row["benchmark_version"]), f"{run.folder.name} row {row['cell_id']}")
    if len(first) > 1:
        named = ", ".join(f"version {version}: {where}" for version, where in sorted(first.items()))
        raise ValueError(f"runs of different benchmark versions cannot be compared ({named}): run the older ones again")


def absent_presets(runs: Iterable[Run], gpus: Sequence[str] = ()) -> list[StudyParams]:
    """The GPU studies that could be predicted because nobody has run them here; the model knows of one GPU."""
    there = {run.params.gpu for run in runs}
    names = [name for name in gpus or available_params() if name not in there and name in available_params()]
    known = [params for params in map(load_params, names) if params.num_devices == 1]
    return [params for params in known if params.device == "cuda" and params.pair in PRESETS]


def headlines_if_eager(presets: Iterable[StudyParams]) -> pd.DataFrame:
    """The predicted headlines if the host started one kernel after another, instead of replaying captured steps."""
    tables = [_predicted_headline(params, predict(params, price(params.price), start="eager")) for params in presets]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=SIDE_BY_SIDE)


def predicted_lines(presets: Iterable[StudyParams], batch_sizes: Sequence[int] = ()) -> pd.DataFrame:
    """Predictions for these studies, by default at their own batch sizes."""
    tables = [
        predict(
            params.model_copy(update={"batch_sizes": list(batch_sizes)} if batch_sizes else {}), price(params.price)
        )
        for params in presets
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*SIDE_BY_SIDE, "fits"])


def side_by_side(runs: Sequence[Run], presets: Sequence[StudyParams]) -> pd.DataFrame:
    """The headline of every run, and the predicted one of every preset; the `evidence` of each line says which."""
    tables = [metrics.headline(_measured(run), run.params) for run in runs]
    tables += [_predicted_headline(params, predicted_lines([params])) for params in presets]
    tables = [table.reindex(columns=SIDE_BY_SIDE).astype({"num_draft_tokens": "Float64"}) for table in tables]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=SIDE_BY_SIDE)


def own_settings(runs: Sequence[Run], presets: Sequence[StudyParams]) -> pd.DataFrame:
    """Every line at the first prompt and output length of its study, measured or predicted: others are other work."""
    columns = [*SIDE_BY_SIDE, "fits"]
    tables = [metrics.own_settings(_measured(run), run.params) for run in runs]
    tables += [metrics.own_settings(predicted_lines([params]), params) for params in presets]
    tables = [table.reindex(columns=columns).astype({"num_draft_tokens": "Float64"}) for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def sources(runs: Sequence[Run], presets: Sequence[StudyParams]) -> str:
    """Which studies are measured here, on what and at whose price, and which are predicted."""
    measured = [
        f"{run.params.gpu} on {run.product} (priced as {run.price.vendor}, read on {run.price.date})" for run in runs
    ]
    predicted = [f"{params.gpu} as {price(params.price).gpu}" for params in presets]
    return f"Measured: {', '.join(measured) or 'nothing'}. Predicted: {', '.join(predicted) or 'nothing'}."


def pareto(lines: pd.DataFrame) -> pd.DataFrame:
    """Latency against cost: each line with `on_front`, true if no other of the same work beats it in both.

    The same work is one pair, dtype and temperature; where an acceptance is given there is no temperature.
    """
    lines = lines[lines["tpot_ms"].notna() & lines["usd_per_million_tokens"].notna()]
    if "fits" in lines:
        lines = lines[lines["fits"].ne(False)]  # null where it was measured: what ran did fit
    lines = lines.sort_values(["tpot_ms", "usd_per_million_tokens"]).reset_index(drop=True)
    fronts = [on_front(group) for _, group in lines.groupby(SAME_WORK, dropna=False)]
    return lines.assign(on_front=pd.concat(fronts) if fronts else False)


def price_break_even(lines: pd.DataFrame) -> pd.DataFrame:
    """By machine and batch size: how much dearer an hour may be with speculation before it stops saving money.

    The ratio of throughputs at the method, gamma and temperature that make it largest; no price enters it.

    Args:
        lines: from `own_settings`.
    """
    timed, by = lines[lines["tokens_per_second"].notna()], ["gpu", "pair", "evidence", "batch_size"]
    is_baseline, same = timed["method"] == metrics.BASELINE, [*by, "temperature"]
    baseline = timed[is_baseline].groupby(same, dropna=False)["tokens_per_second"].max()
    speculative = timed[~is_baseline].groupby(same, dropna=False)["tokens_per_second"].max()
    ratios = (speculative / baseline).dropna()
    return ratios.groupby(level=by).max().rename("price_ratio").reset_index()


def cheapest_under(lines: pd.DataFrame, limits_ms: Sequence[float]) -> pd.DataFrame:
    """For each limit of the time per token, the cheapest setting for the same work that keeps it."""
    found = []
    for limit in limits_ms:
        kept = lines[(lines["tpot_ms"] <= limit) & lines["usd_per_million_tokens"].notna()]
        best = kept.loc[kept.groupby(SAME_WORK, dropna=False)["usd_per_million_tokens"].idxmin()]
        found.append(best.assign(limit_ms=limit))
    return pd.concat(found, ignore_index=True)


def price_ratios(cheaper: str, dearer: str) -> pd.DataFrame:
    """What vendors ask for two products: the ratio of their hourly prices where one sells both, with both dates."""
    prices = load_prices().values()
    ratios = [
        {
            "vendor": b.vendor, "region": b.region, "cheaper_usd_per_hour": a.usd_per_hour,
            "dearer_usd_per_hour": b.usd_per_hour, "ratio": b.usd_per_hour / a.usd_per_hour,
            "dates": " and ".join(sorted({str(a.date), str(b.date)})),
        }
        for a in prices
        for b in prices
        if (a.gpu, b.gpu) == (cheaper, dearer) and (a.vendor, a.region) == (b.vendor, b.region)
    ]  # fmt: skip
    return pd.DataFrame(ratios).sort_values("ratio").reset_index(drop=True)


def _predicted_headline(params: StudyParams, lines: pd.DataFrame) -> pd.DataFrame:
    gamma = lines["num_draft_tokens"].isna() | (lines["num_draft_tokens"] == params.headline_num_draft_tokens)
    batch = lines["batch_size"] == params.batch_sizes[0]
    table = lines[gamma & batch & (lines["prompt_tokens"].fillna(0) == params.prompt_tokens[0])]
    return table.assign(temperature=np.nan)  # an acceptance that is given has none


def _current_price(params: StudyParams) -> str:
    """The price that the params file names now: a price may change without a new run."""
    return load_params(params.gpu).price if params.gpu in available_params() else params.price


def _check_one(rows: pd.DataFrame, column: str, where: str) -> None:
    values = rows[column].unique()
    if len(values) > 1:
        row = rows[rows[column] == values[1]].iloc[0]
        raise ValueError(
            f"{where}: row {row['cell_id']} has {column} {values[1]!r}, others have {values[0]!r}: "
            "keep one product and one setting in a folder, or move the other run to a folder of its own"
        )


def _product(environment: dict[str, object], device: str) -> str:
    """The product of `environment.json`, with its power limit if somebody changed that; else the device's name."""
    cuda = environment.get("cuda")
    if not isinstance(cuda, dict) or not cuda.get("product"):
        return device
    limit, default = cuda.get("power_limit_watts"), cuda.get("default_power_limit_watts")
    changed = limit is not None and default is not None and abs(limit - default) > 1
    return f"{cuda['product']} at {limit:g} W" if changed else str(cuda["product"])


def _measured(run: Run) -> pd.DataFrame:
    """Every line that the library itself measured, with product, memory, energy and dollars."""
    lines = run.lines
    lines = lines[(lines["engine"] == metrics.OWN_ENGINE) & lines["tokens_per_second"].notna()]
    return lines.assign(
        gpu=run.params.gpu,
        product=run.product,
        memory_bytes=pd.to_numeric(lines[metrics.memory_column(lines)]).astype(float),
        joules_per_token=lines["energy_joules_per_token"],
        usd_per_million_tokens=[
            usd_per_million_tokens(rate, run.price.usd_per_hour) for rate in lines["tokens_per_second"]
        ],
    ).reset_index(drop=True)


def family(product: str) -> str | None:
    """A100, H100 and so on for a product of the catalog; None for a processor."""
    gpu = load_gpus().get(re.sub(r" at .*", "", product))
    return gpu.product.split()[0] if gpu else None
