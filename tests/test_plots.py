"""Figures carry labels, units and evidence, every colour means one method, and findings say what the table says."""

import itertools

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis import cost, findings, metrics, plots, show, style, tables

PARAMS = study()
ROWS = synthetic_rows(PARAMS)
LINES = metrics.speedups(ROWS)
HEADLINE = metrics.headline(LINES, PARAMS)
POSITIONS = metrics.headline(metrics.acceptance_by_position(ROWS), PARAMS)
GAPS = metrics.headline(metrics.token_gaps(ROWS), PARAMS)
COSTS = metrics.headline(cost.cost_table(LINES, 0.09), PARAMS)
OVER_TRANSFORMERS = metrics.headline_setting(metrics.speedups_over_transformers(ROWS), PARAMS)


def along(axis):
    return metrics.along(LINES, PARAMS, axis)


FIGURES = {
    "speedup by gamma": lambda: plots.speedup_figure(along("num_draft_tokens"), "num_draft_tokens"),
    "speedup by prompt length": lambda: plots.speedup_figure(along("prompt_tokens"), "prompt_tokens"),
    "tpot by batch size": lambda: plots.tpot_figure(along("batch_size")),
    "memory by batch size": lambda: plots.memory_figure(along("batch_size")),
    "acceptance": lambda: plots.acceptance_figure(POSITIONS),
    "token gaps": lambda: plots.token_gap_figure(GAPS),
    "cost": lambda: plots.cost_figure(COSTS, "somewhere, 2026-10-01"),
}
FINDINGS = {
    "speedup by gamma": lambda: findings.finding_speedup(along("num_draft_tokens"), "num_draft_tokens"),
    "speedup by prompt length": lambda: findings.finding_speedup(along("prompt_tokens"), "prompt_tokens"),
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
    assert figure.get_suptitle().endswith("(measured)")
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


def test_shown_text_is_escaped(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", lambda data, **_: shown.append(data))
    show.say("<script>alert(1)</script>")
    show.show_table(pd.DataFrame({"reason": ["<img src=x onerror=alert(1)>"]}))
    show.show(Figure(), "<b>bold</b>")
    as_html = [data.data if hasattr(data, "data") else data.get("text/html", "") for data in shown]
    assert not any(tag in text for text in as_html for tag in ("<script", "<img", "<b>"))
