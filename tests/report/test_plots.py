"""Figures carry labels, units and evidence, every colour means one method, and findings say what the table says."""

import itertools

import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic_rows import step_costs, study, synthetic_rows

from specdec_lib.analysis import cost, metrics
from specdec_lib.analysis.prediction import predicted_speedups
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.report import captions as findings
from specdec_lib.report.figures import cost as cost_plots
from specdec_lib.report.figures import style
from specdec_lib.report.figures import sweep as plots
from specdec_lib.report.pages import show
from specdec_lib.report.tables import sweep as tables

PARAMS = study()
ROWS = synthetic_rows(PARAMS)
LINES = metrics.speedups(ROWS)
HEADLINE = metrics.headline(LINES, PARAMS)
POSITIONS = metrics.headline(metrics.acceptance_by_position(ROWS), PARAMS)
GAPS = metrics.headline(metrics.token_gaps(ROWS), PARAMS)
ALL_COSTS = cost.cost_table(LINES, 0.09)
COSTS = metrics.headline(ALL_COSTS, PARAMS)
OWN_COSTS = metrics.own_settings(ALL_COSTS, PARAMS)
CALL = DecodeResult(
    [torch.arange(6)], 0.1, [0.06, 0.05], [[3], [2]], steps=2, tested_by_position=[2], accepted_by_position=[1]
)
BASE = DecodeResult([torch.arange(6)], 0.1, [0.04] * 5, [[1]] * 5)
OVER_TRANSFORMERS = metrics.headline_setting(metrics.speedups_over_transformers(ROWS), PARAMS)


def along(axis):
    return metrics.along(LINES, PARAMS, axis)


PREDICTED = predicted_speedups(along("num_draft_tokens"), step_costs(), ROWS)
FIGURES = {
    "speedup by gamma": lambda: plots.speedup_figure(along("num_draft_tokens"), "num_draft_tokens", PREDICTED),
    "speedup by prompt length": lambda: plots.speedup_figure(along("prompt_tokens"), "prompt_tokens"),
    "tpot by batch size": lambda: plots.tpot_figure(along("batch_size")),
    "memory by batch size": lambda: plots.memory_figure(along("batch_size")),
    "acceptance": lambda: plots.acceptance_figure(POSITIONS),
    "token gaps": lambda: plots.token_gap_figure(GAPS),
    "cost": lambda: cost_plots.cost_figure(COSTS, "somewhere, 2026-10-01"),
    "latency against cost": lambda: cost_plots.pareto_figure(OWN_COSTS, "somewhere, 2026-10-01"),
    "tokens over time": lambda: plots.arrivals_figure(CALL, BASE),
}
FINDINGS = {
    "speedup by gamma": lambda: findings.finding_speedup(along("num_draft_tokens"), "num_draft_tokens"),
    "speedup by prompt length": lambda: findings.finding_speedup(along("prompt_tokens"), "prompt_tokens"),
    "best gamma": lambda: findings.finding_gamma(along("num_draft_tokens"), PREDICTED),
    "crossover": lambda: findings.finding_crossover(along("batch_size")),
    "latency against cost": lambda: findings.finding_pareto(OWN_COSTS),
    "tokens over time": lambda: findings.finding_arrivals(CALL, BASE),
    "headline": lambda: findings.finding_headline(HEADLINE),
    "tpot by batch size": lambda: findings.finding_tpot(along("batch_size")),
    "memory by batch size": lambda: findings.finding_memory(along("batch_size")),
    "acceptance": lambda: findings.finding_acceptance(POSITIONS),
    "token gaps": lambda: findings.finding_token_gaps(GAPS),
    "cost": lambda: findings.finding_cost(COSTS),
    "transformers": lambda: findings.finding_transformers(OVER_TRANSFORMERS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_title_with_its_evidence_and_labelled_axes(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    evidence = "(measured, predicted)" if name == "speedup by gamma" else "(measured)"
    assert figure.get_suptitle().endswith(evidence)
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels()
    assert to_hex(figure.get_facecolor()) == "#ffffff"
    figure.canvas.draw()


def test_a_figure_leaves_the_global_style_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    FIGURES["cost"]()
    assert dict(mpl.rcParams) == before


def test_speedups_below_one_are_drawn():
    figure = FIGURES["speedup by gamma"]()
    lowest = min(line.get_ydata().min() for axes in figure.axes for line in axes.lines if len(line.get_ydata()) == 4)
    assert lowest < 1
    assert figure.axes[0].get_ylim()[0] < lowest


@pytest.mark.parametrize("heights", [[0.5], [0.0, 0.0], [0.2, 0.21, 0.22, 0.9], [1.0, 1.0, 0.98]])
def test_labels_at_the_end_of_curves_do_not_overlap(heights):
    (axes,) = style.new_figure("", 1)[1]
    axes.set_ylim(0, 1)
    style.label_ends(axes, [style.EndLabel(height, "name", "black") for height in heights])
    placed = [text.xy[1] for text in axes.texts]
    assert all(above - below > 0.06 for below, above in itertools.pairwise(placed))
    assert max(abs(a - b) for a, b in zip(placed, sorted(heights), strict=True)) < 0.1


def test_one_method_alone_and_one_prompt_make_a_figure():
    """No interval, one panel, one curve: the smallest study."""
    params = study(
        methods=["ngram"], num_prompts=1, temperatures=[0.0], num_draft_tokens=[4], compare_transformers=False
    )
    lines = metrics.along(metrics.speedups(synthetic_rows(params)), params, "num_draft_tokens")
    plots.speedup_figure(lines, "num_draft_tokens").canvas.draw()
    assert "(no interval)" in findings.finding_speedup(lines, "num_draft_tokens")


def test_nothing_measured_is_said_and_not_drawn():
    with pytest.raises(ValueError, match="nothing was measured"):
        plots.tpot_figure(LINES.iloc[:0])
    assert findings.finding_tpot(LINES.iloc[:0]) == findings.NOTHING


def test_findings_name_the_numbers_of_their_table():
    best = LINES[(LINES["method"] == "draft") & (LINES["temperature"] == 0) & (LINES["batch_size"] == 1)]
    best = metrics.headline_setting(best[best["engine"] == "specdec_lib"], PARAMS)["speedup"].max()
    assert f"{best:.2f}×" in FINDINGS["speedup by gamma"]()
    cheapest = COSTS["usd_per_million_tokens"].min()
    assert f"${cheapest:#.3g}" in FINDINGS["cost"]()


@pytest.mark.parametrize("name", FINDINGS)
def test_findings_are_finished_sentences(name):
    text = FINDINGS[name]()
    assert text.endswith(".")
    assert "nan" not in text
    assert "<NA>" not in text


def test_tables_show_undefined_as_a_dash_and_gamma_as_an_integer():
    table = tables.speedup_table(HEADLINE)
    baseline = table[table["method"] == style.METHOD_NAMES["autoregressive"]].iloc[0]
    assert baseline["acceptance rate"] == tables.UNDEFINED
    assert baseline["γ"] == tables.UNDEFINED
    assert set(table["evidence"]) == {"measured"}
    assert 4 in set(table["γ"])
    assert set(table["prompt"]) == {"natural"}
    assert "peak memory of the process (MiB)" in tables.latency_table(HEADLINE)
    assert "break-even price ratio" in tables.cost_columns(COSTS)


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


def test_a_single_value_makes_a_sentence_and_no_figure(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", lambda data, **_: shown.append(data))
    lines = along("max_new_tokens")
    show.show_speedups(lines[lines["max_new_tokens"] == 48], "max_new_tokens")
    show.show_speedups(lines, "max_new_tokens")
    assert [("image/png" in data) for data in shown] == [False, True, False]


def test_shown_text_is_escaped(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", lambda data, **_: shown.append(data))
    show.say("<script>alert(1)</script>")
    show.show_table(pd.DataFrame({"reason": ["<img src=x onerror=alert(1)>"]}))
    show.show(Figure(), "<b>bold</b>")
    as_html = [data.data if hasattr(data, "data") else data.get("text/html", "") for data in shown]
    assert not any(tag in text for text in as_html for tag in ("<script", "<img", "<b>"))
