"""Every figure, table and caption takes data with holes: the notebooks run on them, and what they show is read.

Holes are what a run can leave: a method none of whose drafts was tested, no baseline, one prompt, no costs, nothing.
"""

import contextlib
import importlib
import inspect
import json
import pkgutil
import re
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic_rows import step_costs, study, synthetic_profile, synthetic_rows

from specdec_lib import params_files
from specdec_lib.analysis import acceptance, comparison, headline, metrics, step_table
from specdec_lib.analysis.cost_model import published
from specdec_lib.exactness import certificate
from specdec_lib.hardware.catalog import price
from specdec_lib.peers import lines as peer_lines
from specdec_lib.peers import rows as peer_run
from specdec_lib.report import captions, figures, show, tables
from specdec_lib.report.captions.advice import NO_AGREEMENT, NO_PROFILE, NO_REGRET
from specdec_lib.report.captions.phrases import NOTHING
from specdec_lib.report.captions.sweep import NO_COSTS
from specdec_lib.report.figures.style import EMPTY
from specdec_lib.report.notebooks import NOTEBOOKS, ROOT
from specdec_lib.study.rows import table

FEW = {"num_draft_tokens": [1, 4], "batch_sizes": [1, 2], "prompt_tokens": [0], "max_new_tokens": [48]}
FEW |= {"num_prompts": 2, "repetitions": 1}
PARAMS = study(**FEW)  # too few prompts for intervals, which take time
ROWS = synthetic_rows(PARAMS)
PROFILE = synthetic_profile(PARAMS)
PARTS = {  # what views are made of, and so need not be asked for alone
    "figures.style",
    "figures.heatmap",
    "captions.phrases",
    "captions.verdict",
    "figures.labels",
    "tables.readable",
}
COUNTS = pd.DataFrame({"sampler": ["one"] * 2, "observed": [9, 40], "expected": [10.0, 39.0]})  # not published
CERTIFICATE = replace(certificate.read_certificate(ROOT / "outputs" / "published" / "cpu"), cells=COUNTS)


def views():
    """Every public function of figures, tables and captions, by module and name."""
    for package in (figures, tables, captions):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module, place = importlib.import_module(found.name), found.name.removeprefix("specdec_lib.report.")
            for name, function in inspect.getmembers(module, inspect.isfunction):
                if place not in PARTS and function.__module__ == module.__name__ and not name.startswith("_"):
                    yield module, place, name, function
    for name in ("line_table", "finding_peers", "finding_setting", "failures"):
        yield peer_lines, "peers.lines", name, getattr(peer_lines, name)


def read(name, view):
    """The text of a view, which can be drawn or shown and writes no undefined number out."""
    if isinstance(view, Figure):
        view.set_layout_engine("none")  # which takes longest
        view.draw_without_rendering()
        texts = [view.get_suptitle(), *(text.get_text() for axes in [view, *view.axes] for text in axes.texts)]
        text = " ".join(texts)
    elif isinstance(view, pd.DataFrame):
        text = "" if view.empty else show.table_html(view, name)
    else:
        text = view
        assert text.endswith(".") or name == "price_note", (name, text)
    assert not re.search(r"\bnan\b|<NA>|\bNone\b|\binf\b", text), (name, text)
    return text


LINES = {}  # of the rows without a hole


@pytest.fixture(autouse=True)
def lines_made_once(monkeypatch, request):
    """The same rows make the same lines, which takes long."""
    made = {} if "hole_in_the_rows" in request.node.name else LINES
    real = metrics.speedups

    def speedups(rows, seed=0, reference=metrics.OWN_ENGINE, by=()):
        key = pd.util.hash_pandas_object(rows["cell_id"]).sum(), len(rows), reference, tuple(by)
        if key not in made:
            made[key] = real(rows, seed, reference, by)
        return made[key]

    for module in (metrics, headline):
        monkeypatch.setattr(module, "speedups", speedups)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Execute the code of a notebook on given data; returns what every view said that it made, by name."""

    @contextlib.contextmanager
    def watched(said):
        with monkeypatch.context() as patch:
            for module, place, name, function in views():

                def asked(*args, made=function, at=f"{place}.{name}", **more):
                    view = made(*args, **more)
                    said.setdefault(at, []).append(read(made.__name__, view))
                    return view

                patch.setattr(module, name, asked)
            for name in ("show", "show_text", "show_table", "show_transcripts"):
                patch.setattr(show, name, lambda *shown, **more: None)
            yield patch

    def execute(notebook, **data):
        (tmp_path / params_files.RUN_FACTS).touch()  # a finished run, so that nothing is measured
        said, values = {}, {"gpu": str(tmp_path), "output_folder": str(tmp_path), "outputs": str(tmp_path)}
        cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
        with watched(said) as patch:
            for place, function in data.items():
                module, name = PLACES[place]
                patch.setattr(module, name, function)
            load = params_files.load_params
            known = lambda gpu, overrides=None: PARAMS if gpu == str(tmp_path) else load(gpu, overrides)  # noqa: E731
            patch.setattr(params_files, "load_params", known)
            space = {}
            for cell in cells:
                if cell["cell_type"] == "code":
                    exec("".join(cell["source"]), space)
                    if "parameters" in cell["metadata"].get("tags", ()):
                        space |= values
        return said

    return execute


PLACES = {  # where notebooks get their data
    "rows": (table, "read_results"),
    "costs": (step_table, "read_step_costs"),
    "runs": (comparison, "find_runs"),
    "presets": (comparison, "absent_presets"),
    "published": (published, "load_published"),
    "certificate": (certificate, "read_certificate"),
    "peers": (peer_run, "read_peers"),
    "profile": (acceptance, "read_acceptance"),
}


def always(value):
    return lambda *args, **more: value


def latency(run, rows, costs):
    return run("02_latency_sweep", rows=always(rows), costs=always(costs))


def advisor(run, rows, costs, profile):
    return run("06_advisor", rows=always(rows), costs=always(costs), profile=always(profile))


def a_run(rows, folder):
    return comparison.Run(PARAMS, "a machine", rows, price(PARAMS.price), folder)


def untested(rows, value):
    """n-gram lookup with no tested draft: 0 in a text that does not repeat itself, None in calls of one token."""
    ours = rows["method"] == "ngram"
    rows.loc[ours, ["drafted_tokens", "tested_tokens", "accepted_tokens", *([] if value == 0 else ["steps"])]] = value
    for name in ("tested_by_position", "accepted_by_position"):
        counts = zip(ours, rows[name], strict=True)
        rows[name] = [([0] * len(was) if value == 0 else None) if mine else was for mine, was in counts]
    return rows


def without(column, value):
    return lambda rows: rows[rows[column] != value]


def emptied(method, *columns):
    def change(rows):
        rows.loc[rows["method"].eq(method) if method else rows["method"].notna(), list(columns)] = None
        return rows

    return change


def both(*changes):
    def change(rows):
        for each in changes:
            rows = each(rows)
        return rows

    return change


HOLES = {
    "nothing": lambda rows: rows.iloc[:0],
    "all failed": lambda rows: rows.assign(status="failed", error="out of memory"),
    "a method never tested": lambda rows: untested(rows, 0),
    "a method without counters": lambda rows: untested(rows, None),
    "a method absent, one prompt": both(without("method", "ngram"), lambda rows: rows[rows["prompt_group"] == 0]),
    "a method not registered": lambda rows: rows.assign(method=rows["method"].replace("ngram", "of an old run")),
    "no baseline": without("method", "autoregressive"),
    "only the baseline": lambda rows: rows[rows["method"] == "autoregressive"],
    "no greedy rows, one batch size": both(without("temperature", 0.0), without("batch_size", 2)),
    "a temperature without baseline": lambda rows: rows[
        (rows["temperature"] == 0) | (rows["method"] != "autoregressive")
    ],
    "headline batch absent": without("batch_size", 1),
    "no time per token of a method": emptied("ngram", "tpot_ms"),
    "no throughput or memory of a method": emptied("ngram", "tokens_per_second", "ttft_ms", "process_peak_rss_bytes"),
    "no throughput, memory or steps": emptied(
        None, "tokens_per_second", "process_peak_rss_bytes", "step_ms", "step_tokens"
    ),
    "no time per token at all": emptied(None, "tpot_ms"),
}
COSTS = {
    "no costs": lambda costs: costs.iloc[:0],
    "no target": without("model", "target"),
}
WITH_COSTS = {  # holes in the costs that are met together with one in the rows, which leaves the rest of them in use
    "a method absent, one prompt": without("model", "draft"),
    "no greedy rows, one batch size": lambda costs: costs[(costs["model"] != "target") | (costs["num_tokens"] > 1)],
    "a temperature without baseline": lambda costs: costs.assign(batch_size=64),
    "no throughput or memory of a method": without("model", "sampling"),
}


def test_every_view_is_shown_by_a_notebook(run, tmp_path):
    """So that all of them meet the holes below: a new one by being shown."""
    said = latency(run, ROWS, step_costs()) | run("03_cost_analysis", rows=always(ROWS))
    said |= run("01_correctness", certificate=always(CERTIFICATE))
    said |= run("04_gpu_comparison", runs=always([a_run(ROWS, tmp_path)]))
    said |= run("05_peers", peers=always(peer_rows("ok")))
    said |= advisor(run, ROWS, step_costs(), PROFILE)
    assert {f"{place}.{name}" for _, place, name, _ in views()} == said.keys()
    assert not [name for name, texts in said.items() if any(EMPTY in text for text in texts)]


OFTEN = ("nothing", "a method never tested", "no baseline")  # the others take minutes together


@pytest.mark.parametrize(
    "hole", [each if each in OFTEN else pytest.param(each, marks=pytest.mark.slow) for each in HOLES]
)
def test_a_hole_in_the_rows_is_said(hole, run, tmp_path):
    rows = HOLES[hole](ROWS.copy())
    costs = WITH_COSTS.get(hole, lambda costs: costs)(step_costs())
    said = latency(run, rows, costs) | run("03_cost_analysis", rows=always(rows))
    advisor(run, rows, costs, PROFILE)
    run("04_gpu_comparison", runs=always([a_run(rows, tmp_path)]), presets=always([]), published=always({}))
    if hole in ("nothing", "all failed"):
        drawn = {name: texts for name, texts in said.items() if "figure" in name.rsplit(".", 1)[1]}
        assert all(EMPTY in text for texts in drawn.values() for text in texts)
        assert set(said["captions.sweep.finding_speedup"]) == {NOTHING}


@pytest.mark.parametrize("hole", COSTS)
def test_costs_that_were_not_measured_are_said(hole, run):
    said = latency(run, ROWS, COSTS[hole](step_costs()))
    assert said["captions.sweep.finding_waterfall"] == [NO_COSTS]
    assert advisor(run, ROWS, COSTS[hole](step_costs()), PROFILE)["captions.advice.finding_advice"] == [NO_PROFILE]


def test_a_run_without_a_profile_says_so(run):
    said = advisor(run, ROWS, step_costs(), acceptance.read_acceptance(ROOT))
    assert said["captions.advice.finding_advice"] == [NO_PROFILE]
    assert said["captions.advice.finding_regret"] == [NO_REGRET]
    assert said["captions.advice.finding_agreement"] == [NO_AGREEMENT]


@pytest.mark.parametrize(
    "hole",
    [
        {"runs": [], "presets": []},
        {"published": {}, "runs": []},
    ],
    ids=lambda hole: f"no {', '.join(hole)}",
)
def test_a_comparison_of_nothing_says_so(hole, run):
    run("04_gpu_comparison", **{name: always(value) for name, value in hole.items()})


@pytest.mark.parametrize(
    ("name", "kept"),  # a table that an old run did not keep is no table
    [*((name, "no lines") for name in certificate.TABLES), ("all", "no lines"), ("all", "no table")],
)
def test_a_certificate_of_nothing_says_so(name, kept, run):
    names = certificate.TABLES if name == "all" else [name]
    none = {each: getattr(CERTIFICATE, each).iloc[:0] if kept == "no lines" else pd.DataFrame() for each in names}
    run("01_correctness", certificate=always(replace(CERTIFICATE, **none)))
    assert {*certificate.TABLES, "environment", "kept_failures"} == {field.name for field in fields(CERTIFICATE)}


def peer_rows(status):
    """Rows of one engine, all with that status."""
    row = {
        "engine": "transformers", "engine_version": "1", "method": "autoregressive", "pair": "p", "draft_id": None,
        "num_draft_tokens": np.nan, "temperature": 0.0, "prompt_id": "a", "tpot_ms": 5.0, "status": status,
        "error": "it broke", "gpu": "cpu", "device_name": "d", "dtype": "float32", "threads": 1, "run_id": "r",
        "batch_size": 1, "max_new_tokens": 4, "evidence": "measured", "tokens": [1, 2], "target_id": "t",
        "prompt_set": "mixed", "repetition": 0, "prompt_tokens": 3,
    }  # fmt: skip
    return pd.DataFrame([row])


@pytest.mark.parametrize("status", ["ok", "failed", "absent"])
def test_peers_that_all_failed_or_one_alone_are_said(status, run):
    said = run("05_peers", peers=always(peer_rows(status).iloc[: 0 if status == "absent" else 1]))
    assert (EMPTY in said["figures.peers.peers_figure"][0]) == (status != "ok")
    assert (said["peers.lines.finding_peers"] == ["No engine decoded every prompt."]) == (status != "ok")
