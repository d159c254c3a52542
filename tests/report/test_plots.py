"""Figures carry labels, units and evidence; every colour means one method; captions say what their table says."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic_rows import step_costs, study, synthetic_rows

from specdec_lib.analysis import cost, headline, metrics
from specdec_lib.analysis.prediction import predicted_speedups
from specdec_lib.analysis.step_table import verification_costs
from specdec_lib.analysis.sweep.batching import batch_gains
from specdec_lib.analysis.sweep.crossover import measured_crossovers
from specdec_lib.analysis.sweep.drift import baseline_calls
from specdec_lib.analysis.sweep.tradeoff import tradeoff_lines
from specdec_lib.analysis.waterfall import waterfall
from specdec_lib.methods import METHODS, Method, register
from specdec_lib.report import show
from specdec_lib.report.captions import cost as cost_findings
from specdec_lib.report.captions import drift as drift_findings
from specdec_lib.report.captions import phrases
from specdec_lib.report.captions import sweep as findings
from specdec_lib.report.figures import cost as cost_plots
from specdec_lib.report.figures import drift as drift_plots
from specdec_lib.report.figures import steps as step_plots
from specdec_lib.report.figures import sweep as plots
from specdec_lib.report.figures import tradeoff as tradeoff_plots
from specdec_lib.report.tables import sweep as tables
from specdec_lib.report.tables.readable import UNDEFINED

PARAMS = study()
PRICE = "somewhere, 2026-10-01"


class Page:
    """Everything that the reports make of the rows of a run."""

    def __init__(self, rows, params=PARAMS, costs=None):
        costs = step_costs() if costs is None else costs
        self.headline = headline.headline(rows, params)
        self.lines = metrics.speedups(rows)
        along = {name: headline.along(self.lines, params, name) for name in ("num_draft_tokens", "prompt_tokens")}
        by_gamma, by_prompt = along.values()
        by_batch = headline.along(self.lines, params, "batch_size")
        predicted = predicted_speedups(by_gamma, costs, rows)
        positions = metrics.acceptance_by_position(headline.at_headline(rows, params))
        crossovers = measured_crossovers(rows, params.gpu)
        self.costs = cost.cost_table(self.lines, 0.09)
        at_headline = headline.at_headline(self.costs, params)
        front = cost.with_front(headline.every_batch(self.costs, params), ["temperature"])
        tradeoff, calls = tradeoff_lines(headline.every_batch(self.lines, params)), baseline_calls(rows)
        stages, verifying = waterfall(headline.every_gamma(rows, params), costs), verification_costs(costs, rows)
        few, gains = headline.at_headline(stages, params), batch_gains(by_batch)
        transformers = headline.headline_over_transformers(rows, params)
        self.figures = {
            "speedup by gamma": lambda: plots.speedup_figure(by_gamma, "num_draft_tokens", predicted),
            "speedup by prompt length": lambda: plots.speedup_figure(by_prompt, "prompt_tokens"),
            "tpot by batch size": lambda: plots.tpot_figure(by_batch),
            "memory by batch size": lambda: plots.memory_figure(by_batch),
            "acceptance": lambda: plots.acceptance_figure(positions),
            "waterfall": lambda: step_plots.waterfall_figure(few),
            "cost": lambda: cost_plots.cost_figure(at_headline, PRICE),
            "latency against cost": lambda: cost_plots.pareto_figure(front, PRICE),
            "throughput against latency": lambda: tradeoff_plots.tradeoff_figure(tradeoff),
            "baseline over the run": lambda: drift_plots.drift_figure(calls),
        }
        self.findings = {
            "speedup by gamma": lambda: findings.finding_speedup(by_gamma, "num_draft_tokens"),
            "speedup by prompt length": lambda: findings.finding_speedup(by_prompt, "prompt_tokens"),
            "best gamma": lambda: findings.finding_gamma(by_gamma, predicted),
            "crossover": lambda: findings.finding_crossover(crossovers),
            "batches": lambda: findings.finding_batches(gains),
            "latency against cost": lambda: cost_findings.finding_pareto(front),
            "throughput against latency": lambda: cost_findings.finding_tradeoff(tradeoff),
            "baseline over the run": lambda: drift_findings.finding_drift(calls),
            "waterfall": lambda: findings.finding_waterfall(few),
            "transformers": lambda: findings.finding_transformers(transformers),
        }
        self.tables = {
            "speedup": lambda: tables.speedup_table(self.lines),
            "latency": lambda: tables.latency_table(self.lines),
            "trouble": lambda: tables.trouble_table(rows),
            "batching": lambda: tables.batching_table(gains),
            "crossover": lambda: tables.crossover_table(crossovers),
            "verification": lambda: tables.verification_table(verifying),
            "waterfall": lambda: tables.waterfall_table(stages),
            "cost": lambda: tables.cost_columns(self.costs),
        }


ROWS = synthetic_rows(PARAMS)
SMALL = study(num_draft_tokens=[1, 4], batch_sizes=[1, 2], prompt_tokens=[0], max_new_tokens=[48], repetitions=1)


@pytest.fixture(scope="module")
def page():
    return Page(ROWS)


def test_a_method_registered_from_outside_has_its_label_colour_and_costs_everywhere():
    register(Method("toy", "toy drafts", "#CC79A7", "v", lambda pair: None, ("toy",)))
    try:
        rows = synthetic_rows(SMALL)
        rows = rows.assign(method=rows["method"].replace("ngram", "toy"))
        costs = step_costs()
        page = Page(rows, SMALL, costs=costs.assign(model=costs["model"].replace("ngram", "toy")))
        figure = page.figures["speedup by gamma"]()
        assert "toy drafts" in {text.get_text() for text in figure.legends[0].get_texts()}
        assert "#cc79a7" in {to_hex(line.get_color()) for line in figure.axes[0].lines}
        table = page.tables["waterfall"]()
        assert UNDEFINED not in set(table.loc[table["method"] == "toy drafts", "cost of drafting"])
    finally:
        del METHODS["toy"]


def test_every_figure_has_a_title_with_its_evidence_and_labelled_axes(page):
    for name, make in page.figures.items():
        figure = make()
        assert isinstance(figure, Figure), name
        assert "measured)" in figure.get_suptitle() or name == "speedup by gamma"
        assert all(axes.get_xlabel() for axes in figure.axes), name
        assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels(), name
        assert to_hex(figure.get_facecolor()) == "#ffffff", name
        figure.canvas.draw()


def test_a_figure_leaves_the_global_style_alone(page):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    page.figures["cost"]()
    assert dict(mpl.rcParams) == before


def test_speedups_below_one_are_drawn(page):
    figure = page.figures["speedup by gamma"]()
    lowest = min(line.get_ydata().min() for axes in figure.axes for line in axes.lines if len(line.get_ydata()) == 4)
    assert lowest < 1
    assert figure.axes[0].get_ylim()[0] < lowest


def test_findings_name_the_numbers_of_their_table(page):
    best = headline.every_gamma(page.lines, PARAMS)["speedup"].max()
    assert f"{best:.2f}×" in page.findings["speedup by gamma"]()


def test_a_speedup_over_too_few_prompts_has_no_interval():
    line = pd.Series({"speedup": 1.234, "speedup_low": float("nan"), "speedup_high": float("nan")})
    assert phrases.with_interval(line) == "1.23× (no interval)"


def test_findings_are_finished_sentences(page):
    for finding in page.findings.values():
        text = finding()
        assert text.endswith("."), text
        assert "nan" not in text
        assert "<NA>" not in text


def test_tables_show_undefined_as_a_dash_and_gamma_as_an_integer(page):
    table = tables.speedup_table(page.headline)
    baseline = table[table["method"] == "autoregressive"].iloc[0]
    assert baseline["acceptance rate"] == UNDEFINED
    assert baseline["γ"] == UNDEFINED
    assert set(table["evidence"]) == {"measured"}
    assert "4" in set(table["γ"])
    assert set(table["prompt"]) == {"natural"}
    assert "peak memory of the process (MiB)" in tables.latency_table(page.headline)
    assert "break-even price ratio" in tables.cost_columns(page.costs)


def test_rows_that_failed_were_skipped_or_throttled_are_listed_with_their_reason():
    rows = ROWS.copy()
    rows.loc[0, ["status", "error"]] = ["failed", "OutOfMemoryError"]
    rows.loc[1, ["status", "error"]] = ["skipped", "does not fit"]
    rows.loc[2, "throttled"] = True
    table = tables.trouble_table(rows)
    assert table["what"].tolist() == ["failed", "skipped", "throttled"]
    assert table["reason"].tolist() == ["OutOfMemoryError", "does not fit", "the device lowered its clock"]


def test_what_every_line_of_a_table_says_is_said_once():
    table = pd.DataFrame({"engine": ["own"] * 3, "method": ["a", "b", "c"], "speedup": ["1.00", "0.50", "–"]})
    text = show.table_html(table, "Three <methods>")
    assert "Three &lt;methods&gt;. In every line: engine own." in text
    assert text.count("own") == 2  # in the caption and as the name of the region
    assert '<td class="number">0.50</td>' in text
    assert "<details>" not in text
    assert show.table_html(pd.concat([table] * 10), "Long").startswith("<details>")
    assert show.table_html(table, "Less important", folded=True).startswith("<details><summary>Less important.")


def test_shown_text_is_escaped(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", lambda data, **_: shown.append(data))
    show.show_text("<script>alert(1)</script>")
    show.show_table(pd.DataFrame({"reason": ["<img src=x onerror=alert(1)>"]}))
    show.show(Figure(), "<b>bold</b>")
    as_html = [data.data if hasattr(data, "data") else data.get("text/html", "") for data in shown]
    assert not any(tag in text for text in as_html for tag in ("<script", "<img", "<b>"))
