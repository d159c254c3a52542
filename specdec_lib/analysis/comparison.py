"""Runs of several machines next to each other: what must not be mixed is refused, what is not measured is predicted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from specdec_lib.analysis import headline, metrics
from specdec_lib.analysis.cost import with_front
from specdec_lib.analysis.cost_model.gpus import predict
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import MEMORY_PLAN, Price, load_gpus, load_prices, price, usd_per_million_tokens
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.params_files import available_params, load_params, params_of_run
from specdec_lib.study.rows.table import price_of_run, read_results

SKIPPED = ("smoke",)  # toys, which are no measurement of a machine
BATCHES = [2**power for power in range(10)]  # for predicted crossovers
COLUMNS = ["gpu", "product", "engine", "pair", "dtype", "method", "num_draft_tokens", "temperature", "batch_size"]
COLUMNS += ["prompt_tokens", "max_new_tokens", "tpot_ms", "tpot_ms_low", "tpot_ms_high"]
COLUMNS += ["speedup", "speedup_low", "speedup_high", "tokens_per_second", "acceptance_rate", "memory_bytes"]
COLUMNS += ["energy_joules_per_token", "usd_per_million_tokens", "evidence", "fits"]
SAME_WORK = ["pair", "dtype", "temperature", "evidence"]


@dataclass(frozen=True)
class Run:
    """The outputs of one study on one product."""

    params: StudyParams
    product: str  # a key of gpus.yaml with its power limit where that was changed, or the name of the processor
    rows: pd.DataFrame
    price: Price
    folder: Path


def find_runs(outputs: Path, gpus: Sequence[str] = ()) -> list[Run]:
    """The finished runs below `outputs`, all of them or those named; checked one by one and against each other.

    Raises:
        ValueError: a folder whose rows come from several products or settings, a price of another product, or runs of
            different benchmark versions; names the folder and a row.
    """
    folders = [path.parent for path in sorted(Path(outputs).glob("*/results.parquet"))]
    chosen = [folder for folder in folders if (folder.name in gpus if gpus else folder.name not in SKIPPED)]
    runs = [read_run(folder) for folder in chosen]
    if len(versions := {int(run.rows["benchmark_version"].iloc[0]): run for run in reversed(runs)}) > 1:
        first = {version: f"{run.folder.name} row {run.rows['cell_id'].iloc[0]}" for version, run in versions.items()}
        named = ", ".join(f"version {version}: {where}" for version, where in sorted(first.items()))
        raise ValueError(f"runs of different benchmark versions cannot be compared ({named}): run the older ones again")
    return runs


def read_run(folder: Path) -> Run:
    """One run, if its rows are of one product, pair and dtype, and its price is of that product.

    Raises:
        ValueError: names the folder and a row that does not belong.
    """
    rows = read_results(folder)
    for column in ("device_name", "pair", "dtype", "benchmark_version"):
        _check_one(rows, column, folder.name)
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    params = params_of_run(environment, source=f"{folder.name}/environment.json")
    # The params file's present price: it may change without a new run.
    price_name = load_params(params.gpu).price if params.gpu in available_params() else params.price
    entry = price_of_run(params.model_copy(update={"price": price_name}), rows["threads"].max())
    product = _product(environment, str(rows["device_name"].iloc[0]))
    if params.device == "cuda" and entry.gpu != product.split(" at ")[0]:
        raise ValueError(
            f"{folder.name}: price {price_name} is of {entry.gpu}, but the run was on {product}: "
            f"name a price of that product in params/{params.gpu}.yaml, or add one to hardware/prices.yaml"
        )
    if params.num_devices > 1:
        product = f"{params.num_devices} x {product}"
    return Run(params, product, rows, entry, folder)


def absent_presets(runs: Iterable[Run], gpus: Sequence[str] = ()) -> list[StudyParams]:
    """The GPU studies without a run here that can be predicted: the model knows of one GPU and of preset pairs."""
    there = {run.params.gpu for run in runs}
    names = [name for name in available_params() if name not in there and (name in gpus or not gpus)]
    known = [params for params in map(load_params, names) if params.num_devices == 1]
    return [params for params in known if params.device == "cuda" and params.pair in PRESETS]


def predicted_lines(presets: Iterable[StudyParams], batch_sizes: Sequence[int] = ()) -> pd.DataFrame:
    """Predictions for these studies, by default at their own batch sizes."""
    changes = {"batch_sizes": list(batch_sizes)} if batch_sizes else {}
    return _stacked(predict(params.model_copy(update=changes), price(params.price)) for params in presets)


def headlines(runs: Sequence[Run], presets: Sequence[StudyParams]) -> pd.DataFrame:
    """The headline of every run, and the predicted one of every preset; the `evidence` of each line says which."""
    tables = [_priced(headline.headline(run.rows, run.params), run) for run in runs]
    tables += [headline.at_headline(predicted_lines([params]), params) for params in presets]
    return _stacked(tables)


def settings(runs: Sequence[Run], presets: Sequence[StudyParams]) -> pd.DataFrame:
    """Every line at the first prompt and output length of its study, measured or predicted: others are other work."""
    tables = [_priced(metrics.speedups(headline.every_batch(run.rows, run.params)), run) for run in runs]
    tables += [headline.every_batch(predicted_lines([params]), params) for params in presets]
    return _stacked(tables)


def pareto(lines: pd.DataFrame) -> pd.DataFrame:
    """Latency against cost: each line with `on_front`, true if no other of the same work beats it in both.

    The same work is one pair, dtype and temperature; where an acceptance is given there is no temperature.
    """
    return with_front(lines[lines["fits"].fillna(True)], SAME_WORK)


def memory_plan() -> pd.DataFrame:
    """What each preset pair needs of a GPU by context, and the largest batch that fits each size of GPU; all predicted.

    A line for each pair and context: `weights_bytes`, `first_bytes` of a batch of one, `row_bytes` of each further row,
    and `fits_<GB>`, 0 where not even one row fits. From `hardware/memory.csv`; memory grows evenly with the batch.
    """
    lines, sizes = [], sorted({gpu.memory_gb for gpu in load_gpus().values()})
    for (pair, tokens), needs in pd.read_csv(MEMORY_PLAN, comment="#").groupby(["pair", "tokens"], sort=False):
        first, last = (needs.sort_values("batch_size").iloc[place] for place in (0, -1))
        row = (last["needed_bytes"] - first["needed_bytes"]) / (last["batch_size"] - first["batch_size"])
        rooms = {size: size * 1e9 - first["needed_bytes"] for size in sizes}
        fits = {f"fits_{size:g}": 1 + int(room / row) if room >= 0 else 0 for size, room in rooms.items()}
        known = {"pair": pair, "tokens": tokens, "weights_bytes": first["target_bytes"] + first["draft_bytes"]}
        lines.append(known | {"first_bytes": first["needed_bytes"], "row_bytes": row, "evidence": "predicted"} | fits)
    return pd.DataFrame(lines)


def break_even(study: StudyParams, cheaper: str, dearer: str) -> pd.DataFrame:
    """The ratio of hourly prices that vendors ask for two products, and the predicted one at which both cost the same.

    Below `break_even` (with speculation at the best gamma) and `break_even_without` the dearer product is the cheaper
    per token, at the first batch size and prompt length of a study. One line for each vendor that sells both.
    """
    prices = pd.DataFrame([entry.model_dump() for entry in load_prices().values()])
    both = [prices[prices["gpu"] == gpu] for gpu in (cheaper, dearer)]
    pairs = both[0].merge(both[1], on=["vendor", "region"], suffixes=("_cheaper", "_dearer"))
    params = study.model_copy(update={"batch_sizes": study.batch_sizes[:1], "prompt_tokens": study.prompt_tokens[:1]})
    sold = [next(entry for entry in load_prices().values() if entry.gpu == gpu) for gpu in (cheaper, dearer)]
    slow, fast = (predict(params, entry).groupby("method")["tokens_per_second"].max() for entry in sold)
    return pairs.assign(
        ratio=pairs["usd_per_hour_dearer"] / pairs["usd_per_hour_cheaper"],
        date=pairs["date_dearer"].astype(str),
        break_even=(fast / slow)["draft"],
        break_even_without=(fast / slow)[AUTOREGRESSIVE],
        evidence="predicted",
    ).sort_values("ratio")


def _stacked(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    nullable = ("num_draft_tokens", "prompt_tokens", "temperature", "acceptance_rate", "energy_joules_per_token")
    types = dict.fromkeys(nullable, "Float64") | {"fits": "boolean"}
    filled = [table.reindex(columns=COLUMNS).astype(types) for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS).astype(types)


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


def _priced(lines: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Lines of a run that have a throughput, with its study, product, memory and dollars."""
    lines = lines[lines["tokens_per_second"].notna()]
    dollars = [usd_per_million_tokens(rate, run.price.usd_per_hour) for rate in lines["tokens_per_second"]]
    return lines.assign(
        gpu=run.params.gpu,
        product=run.product,
        memory_bytes=pd.to_numeric(lines[metrics.memory_column(lines)]).astype(float),
        usd_per_million_tokens=dollars,
    )
