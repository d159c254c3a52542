"""Fronts and drift: which settings are on a front, labels that cover nothing, blocks that are shaded."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic_rows import synthetic_rows

from specdec_lib.analysis.sweep.drift import baseline_calls
from specdec_lib.analysis.sweep.tradeoff import tradeoff_lines
from specdec_lib.methods import METHODS
from specdec_lib.report.captions.cost import finding_tradeoff
from specdec_lib.report.captions.drift import finding_drift
from specdec_lib.report.figures.comparison import pareto_figure
from specdec_lib.report.figures.drift import drift_figure
from specdec_lib.report.figures.labels import label_points
from specdec_lib.report.figures.tradeoff import tradeoff_figure
from specdec_lib.study.rows.table import as_table

SETTINGS = pd.DataFrame(
    [
        ("autoregressive", None, 1, 10.0, 90.0),
        ("draft", 4, 1, 5.0, 150.0),
        ("draft", 8, 1, 6.0, 140.0),  # beaten by the one before in both
        ("autoregressive", None, 8, 12.0, 600.0),
        ("draft", 4, 8, 11.0, 500.0),
    ],
    columns=["method", "num_draft_tokens", "batch_size", "tpot_ms", "tokens_per_second"],
).assign(temperature=0.0, evidence="measured")


def test_the_front_holds_what_no_other_setting_beats_for_one_user_and_for_all():
    lines = tradeoff_lines(SETTINGS)
    front = lines[lines["on_front"]]
    assert front["tpot_ms"].tolist() == [5, 11, 12]
    assert front["user_tokens_per_second"].round(1).tolist() == [200, 90.9, 83.3]
    assert finding_tradeoff(lines) == (
        "At T = 0 one user gets most from draft model, γ = 4 at batch 1: 200 tokens/s after the first. "
        "All users together get most from autoregressive at batch 8: 600 tokens/s, prompts included."
    )


@pytest.mark.parametrize("width", [None, 3.9])
def test_settings_on_the_front_are_labelled(width):
    figure = tradeoff_figure(tradeoff_lines(SETTINGS), width=width)
    assert {text.get_text() for text in figure.axes[0].texts} == {"B1 γ4", "B8", "B8 γ4"}


def test_labels_cover_neither_points_nor_each_other_and_those_without_a_place_are_left_out():
    """Many points close together; the twin without our placing overlaps."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60))
    figure = Figure()
    axes = figure.subplots()
    axes.scatter(x, y, 30)
    label_points(figure, [(axes, *place, "B16 γ4") for place in zip(x, y, strict=True)])
    assert 5 < len(axes.texts) < 60
    placed = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(placed, 2))
    centres = axes.transData.transform(np.column_stack([x, y]))
    assert not any(box.contains(*centre) for box in placed for centre in centres)
    for place in zip(x, y, strict=True):
        axes.annotate("B16 γ4", place)
    careless = [text.get_window_extent() for text in axes.texts]
    assert any(a.overlaps(b) for a, b in itertools.combinations(careless, 2))


def test_across_machines_a_colour_is_a_method_and_a_hollow_point_is_predicted():
    lines = SETTINGS.assign(gpu="one", pair="p", on_front=True, usd_per_million_tokens=1.0)
    figure = pareto_figure(pd.concat([lines, lines.assign(gpu="other", evidence="predicted")]))
    drawn = [points for points in figure.axes[0].collections if len(points.get_offsets())]
    colors = {to_hex(points.get_edgecolor()[0]).upper() for points in drawn}
    assert colors == {METHODS["draft"].color.upper(), METHODS["autoregressive"].color.upper()}
    assert {to_hex(points.get_facecolor()[0]) == "#ffffff" for points in drawn} == {True, False}
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"autoregressive", "draft model", "one (measured)", "other (predicted)"}


@pytest.fixture(scope="module")
def rows():
    """Two blocks drifted."""
    rows = synthetic_rows()
    drifted = (rows["prompt_group"] == 1) & (rows["batch_size"] == 4)
    return rows.assign(drifted=drifted)


def test_blocks_that_drifted_are_shaded_over_the_order_of_the_table(rows):
    calls = baseline_calls(rows)
    assert calls["minutes"].isna().all()
    assert calls["call"].is_monotonic_increasing
    figure = drift_figure(calls)
    assert len(figure.axes[0].patches) == 2  # one for each temperature
    assert "order of the table" in figure.axes[0].get_xlabel()
    blocks = calls["block"].nunique()
    assert finding_drift(calls).startswith(f"2 of {blocks} blocks are excluded")


def test_where_rows_say_when_they_began_the_axis_is_time(rows):
    clock = 1.7e9 + 60.0 * np.arange(len(rows))[::-1]  # the last row of the table was measured first
    calls = baseline_calls(rows.assign(started_at=clock))
    assert calls["minutes"].iloc[0] == 0
    assert calls["minutes"].is_monotonic_increasing
    assert calls["tpot_ms"].iloc[-1] == rows["tpot_ms"].iloc[0]  # the first row is of the baseline
    assert "minutes" in drift_figure(calls).axes[0].get_xlabel()
    assert "minutes." in finding_drift(calls)


def test_the_table_has_a_column_for_the_time():
    assert as_table([{"started_at": 1.5}])["started_at"].to_pylist() == [1.5]
