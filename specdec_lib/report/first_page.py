"""The page of the first minutes on a GPU, from the file of measurements alone: nothing is measured or fetched."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from specdec_lib.analysis.cost_model.data_sheet import OURS, DataSheet, corners
from specdec_lib.hardware.catalog import Gpu, load_gpus
from specdec_lib.methods import AUTOREGRESSIVE
from specdec_lib.models.loading.checkpoints import RANDOM
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.report.render import _SECTION, markdown_to_html
from specdec_lib.report.safe_html import render_template
from specdec_lib.report.show import table_html
from specdec_lib.report.tables.readable import Format, readable

Lines = list[dict[str, Any]]
FORMATS = {
    "measured": Format("measured", "{:.4g}"),
    "data_sheet": Format("data sheet", "{:.4g}"),
    "share": Format("share", "{:.0%}"),
    "ms": Format("measured (ms)", "{:.3f}"),
    "predicted": Format("predicted (ms)", "{:.3f}"),
    "ratio": Format("measured / predicted", "{:.2f}"),
    "peak": Format("peak allocated (GB)", "{:.2f}", 1e-9),
    "plan": Format("planned (GB)", "{:.2f}", 1e-9),
}


def first_page(path: Path) -> str:
    """The page of the file that `gpu-first` wrote.

    Raises:
        ValueError: the file is missing or holds no measurements.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: make one with make gpu-first GPU=<name>")
    items: dict[str, Lines] = defaultdict(list)
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        items["errors" if "error" in line else line["item"]].append(line)
    environment = next((line["environment"] for line in items["machine"] if "environment" in line), None)
    if environment is None:
        raise ValueError(f"{path} does not say on which machine it was measured: measure again with make gpu-first")
    product = (environment.get("cuda") or {}).get("product")
    gpu = load_gpus().get(product) if product else None
    dtype = environment["params"]["dtype"]
    titles = {
        f"# The first minutes on {environment['device_name']}": None,
        "## Machine": _facts(environment),
        "## Checks": _table(items["check"], ["check", "detail"], "Checks"),
        "## Bandwidth and matrix rate": _rates(items["rates"], gpu),
        "## The pieces of a step": _steps(items["steps"] + items["head"] + items["uncaptured"]),
        "## Predicted against measured": _prediction(items["steps"], items["load"], gpu, dtype),
        "## Whole calls": _calls(items["sweep"]),
        "## Memory against the plan": _memory(items["sweep"], items["memory"]),
        "## What failed": _table(items["errors"], ["item", "error"], "Items that failed or were cut off"),
    }
    cells = [{"prose": markdown_to_html(title) + (html or "")} for title, html in titles.items() if html != ""]
    return render_template(
        "report.html.j2", home=path.name, home_name="The measurements of this page", title="The first minutes",
        code_style="", sections=_SECTION.findall("".join(cell["prose"] for cell in cells)), cells=cells,
    )  # fmt: skip


def _table(lines: Lines, columns: list[str], caption: str) -> str:
    return table_html(readable(pd.DataFrame(lines), columns, FORMATS), caption) if lines else ""


def _facts(environment: dict[str, Any]) -> str:
    """What `describe_environment` found, one fact a line; params are left out."""
    flat = pd.json_normalize({name: value for name, value in environment.items() if name != "params"}).iloc[0]
    return table_html(pd.DataFrame({"fact": flat.index, "value": flat.astype(str).to_numpy()}), "Machine")


def _rates(lines: Lines, gpu: Gpu | None) -> str:
    sheet = {"FLOP/s": gpu.bf16_tflops, "bytes/s": gpu.bandwidth_tb_per_s} if gpu else {}
    made = []
    for line in lines:
        stated = sheet.get(line["rate"].rpartition(" ")[2])
        measured = line["value"] / 1e12
        share = measured / stated if stated else None
        made.append({"rate": f"{line['rate']}, in 1e12", "measured": measured, "data_sheet": stated, "share": share})
    return _table(made, ["rate", "measured", "data_sheet", "share"], "Rates, the best of six times")


def _steps(lines: Lines) -> str:
    """Every piece, with v(m) of the target's passes and c of the draft's proposals."""
    table = pd.DataFrame(lines)
    if table.empty:
        return ""
    run = table["item"].where(
        table["item"] == "uncaptured", "steps"
    )  # with the pass over one token that c and v(m) refer to
    single = table[(table["model"] == "target") & (table["num_tokens"] == 1)]
    known = dict(zip(zip(run[single.index], single["batch_size"], strict=True), single["ms"], strict=True))
    table["one"] = [known.get(place, float("nan")) for place in zip(run, table["batch_size"], strict=True)]
    table["draft"] += run.map({"uncaptured": ", not captured"}).fillna("")
    of_target = table["model"] == "target"
    table["verification_cost"] = (table["ms"] / table["one"]).where(of_target)
    table["cost_ratio"] = (table["ms"] / table["num_tokens"] / table["one"]).where(table["model"] == "draft")
    columns = ["draft", "model", "batch_size", "context_tokens", "num_tokens", "ms", "verification_cost", "cost_ratio"]
    return table_html(readable(table, columns, FORMATS), "Pieces of a step")


def _prediction(steps: Lines, load: Lines, gpu: Gpu | None, dtype: str) -> str:
    """Passes and proposals of the model pair, by the data sheet and the cost model's assumptions."""
    name = load[0]["pair"].removesuffix(RANDOM) if load else ""
    if gpu is None or name not in PRESETS:
        return markdown_to_html("No product of `hardware/gpus.yaml` and no preset pair: nothing is predicted.")
    target, draft = PRESETS[name]
    machines = [DataSheet(gpu, corner, dtype) for corner in corners(OURS)]
    made = []
    for line in steps:
        place = {"batch": line["batch_size"], "context": line["context_tokens"]}
        tokens = line["num_tokens"]
        if line["model"] == "target":
            values = [1e3 * machine.pass_(target, tokens=tokens, **place) for machine in machines]
        elif line["model"] == "draft":
            values = [1e3 * machine.propose(draft, num_draft_tokens=tokens, **place) for machine in machines]
        else:
            values = [1e3 * machine.sampling(target, line["batch_size"], tokens) for machine in machines]
        band = {"predicted": values[0], "predicted_low": min(values), "predicted_high": max(values)}
        made.append(line | band | {"ratio": line["ms"] / values[0]})
    return _table(made, ["model", "batch_size", "num_tokens", "ms", "predicted", "ratio"], "Pieces, predicted")


def _calls(lines: Lines) -> str:
    """Median time per token by batch, and the ratio; the acceptance is given."""
    rows = pd.DataFrame([line["row"] for line in lines])
    if rows.empty or not (rows["status"] == "ok").any():
        return ""
    good = rows[rows["status"] == "ok"]
    table = good.groupby(["batch_size", "method"], sort=False)[["tpot_ms", "tokens_per_second"]].median().reset_index()
    base = table[table["method"] == AUTOREGRESSIVE].set_index("batch_size")["tpot_ms"]
    table["speedup"] = table["batch_size"].map(base) / table["tpot_ms"]
    columns = ["batch_size", "method", "tpot_ms", "tokens_per_second", "speedup"]
    return table_html(readable(table, columns), "Whole calls with a given acceptance")


def _memory(sweep: Lines, plan: Lines) -> str:
    """The most that was allocated in the calls of each batch, next to what the rehearsal planned."""
    rows = pd.DataFrame([line["row"] for line in sweep])
    if rows.empty or not plan or rows["peak_memory_allocated_bytes"].isna().all():
        return ""
    peaks = rows.groupby("batch_size")["peak_memory_allocated_bytes"].max()
    made = [
        {"batch_size": need["batch_size"], "peak": peaks.get(need["batch_size"]), "plan": need["peak_bytes"]}
        for need in (line["need"] for line in plan if "need" in line)
    ]
    made = [line | {"ratio": line["peak"] / line["plan"] if line["peak"] else None} for line in made]
    ratio = FORMATS | {"ratio": Format("measured / planned", "{:.2f}")}
    return table_html(readable(pd.DataFrame(made), ["batch_size", "peak", "plan", "ratio"], ratio), "Memory")
