"""Figures, captions and table of categories and of target passes say what their lines say, and take holes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis import metrics
from specdec_lib.analysis.headline import at_headline, every_batch
from specdec_lib.analysis.sweep.categories import category_lines, prompt_ratios
from specdec_lib.analysis.sweep.passes import tokens_per_pass
from specdec_lib.report.captions import categories as findings
from specdec_lib.report.figures import categories as plots
from specdec_lib.report.figures import passes as pass_plots
from specdec_lib.report.figures.style import EMPTY
from specdec_lib.report.tables.categories import category_table

FEW = {"num_draft_tokens": [1, 4], "batch_sizes": [1, 2], "prompt_tokens": [0], "max_new_tokens": [48]}
PARAMS = study(**FEW, num_prompts=4, repetitions=1)
KINDS = {0: "chat", 1: "chat", 2: "code", 3: "list"}


def rows_by_category():
    rows = synthetic_rows(PARAMS)
    rows["category"] = rows["prompt_group"].map(KINDS).astype("string")
    return rows


class Page:
    """All that the reports make of these rows on this subject."""

    def __init__(self, rows):
        self.lines, ratios = category_lines(rows, PARAMS), prompt_ratios(rows, PARAMS)
        passes = tokens_per_pass(at_headline(rows, PARAMS))
        by_both = every_batch(metrics.speedups(rows), PARAMS)
        self.figures = {
            "heatmap": lambda: plots.category_heatmap(self.lines),
            "strip": lambda: plots.category_strip(ratios),
            "acceptance": lambda: plots.acceptance_by_category(self.lines),
            "passes": lambda: pass_plots.passes_histogram(passes),
            "gamma by batch": lambda: pass_plots.gamma_batch_heatmap(by_both),
        }
        self.texts = [findings.finding_category(self.lines), findings.finding_passes(passes)]


ROWS = rows_by_category()
PAGE = Page(ROWS)


def of(method, **columns):
    def change(rows):
        for name, value in columns.items():
            rows.loc[rows["method"] == method, name] = value
        return rows

    return change


HOLES = {
    "no rows": lambda rows: rows.iloc[:0],
    "all failed": lambda rows: rows.assign(status="failed", error="OutOfMemoryError"),
    "no baseline": lambda rows: rows[rows["method"] != "autoregressive"],
    "only the baseline": lambda rows: rows[rows["method"] == "autoregressive"],
    "one prompt": lambda rows: rows[rows["prompt_group"] == 0],
    "no categories": lambda rows: rows.assign(category=pd.Series(pd.NA, rows.index, dtype="string")),
    "a category of one temperature": lambda rows: rows[(rows["category"] != "list") | (rows["temperature"] == 0)],
    "a temperature without baseline": lambda rows: rows[
        (rows["temperature"] == 0) | (rows["method"] != "autoregressive")
    ],
    "a method not registered": lambda rows: rows.assign(method=rows["method"].replace("ngram", "of an old run")),
    "a method without counters": of("ngram", steps=None, accepted_tokens=None, tested_tokens=None),
    "a method without times": of("ngram", tpot_ms=None),
    "the headline batch absent": lambda rows: rows[rows["batch_size"] > 1],
    "acceptance that was given": lambda rows: rows.assign(verification=rows["verification"].fillna("given")),
}


@pytest.mark.parametrize("hole", HOLES)
def test_holes_are_drawn_and_said(hole):
    page = Page(HOLES[hole](ROWS.copy()))
    for draw in page.figures.values():
        figure = draw()
        figure.set_layout_engine("none")  # which takes longest
        figure.draw_without_rendering()
    for text in page.texts:
        assert text.endswith(".")
        assert not any(word in text for word in ("nan", "<NA>", "None"))
    assert isinstance(category_table(page.lines), pd.DataFrame)


@pytest.mark.parametrize("name", PAGE.figures)
def test_figures_of_nothing_say_so_and_others_name_axes_and_evidence(name):
    figure = PAGE.figures[name]()
    assert figure.get_suptitle().endswith("(measured)")
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert figure.axes[0].get_ylabel()
    empty = Page(ROWS.iloc[:0]).figures[name]()
    assert [text.get_text() for text in empty.texts if text.get_text() == EMPTY] == [EMPTY]


@pytest.mark.parametrize("name", PAGE.figures)
def test_no_text_leaves_the_figure(name):
    figure = PAGE.figures[name]()
    figure.draw_without_rendering()
    named = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels())]
    drawn = [*figure.texts, *figure.legends, *named]
    boxes = [artist.get_window_extent() for artist in drawn]
    assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1 for box in boxes)


def test_each_cell_says_speedup_and_number_of_prompts_and_is_blue_only_above_one():
    figure = PAGE.figures["heatmap"]()
    order = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    for axes, (_, lines) in zip(figure.axes, PAGE.lines.groupby("temperature"), strict=True):
        told = {(order[int(text.get_position()[1])], text.get_position()[0]): text.get_text() for text in axes.texts}
        for place, (_, own) in enumerate(lines.groupby("method")):
            for line in own.itertuples():
                assert told[line.category, place + 0.5] == f"{line.speedup:.2f}\nn={line.num_prompts}"
        cells = axes.collections[0]
        red, _, blue, _ = cells.to_rgba(cells.get_array()).transpose(2, 0, 1)
        speedups = lines.pivot(index="category", columns="method", values="speedup").loc[order]
        assert ((blue > red) == (speedups.to_numpy() > 1)).all()


def test_a_strip_has_one_point_for_each_prompt_and_method():
    figure = PAGE.figures["strip"]()
    for axes in figure.axes:
        assert sum(len(drawn.get_offsets()) for drawn in axes.collections if isinstance(drawn, PathCollection)) == 4 * 2


def test_a_setting_that_was_not_measured_is_blank():
    figure = PAGE.figures["gamma by batch"]()
    assert [len(axes.texts) for axes in figure.axes] == [3] * 4  # gamma 1 was measured at batch size 1 only


def test_shares_of_passes_are_the_heights_of_bars():
    passes = tokens_per_pass(at_headline(ROWS, PARAMS))
    figure = pass_plots.passes_histogram(passes)
    heights = sorted(bar.get_height() for axes in figure.axes for bar in axes.patches)
    assert np.allclose(heights, sorted(passes["share"]))


def test_findings_name_the_ends_with_their_number_of_prompts():
    lines = PAGE.lines[PAGE.lines["temperature"] == 0]
    best = lines.groupby("category")["speedup"].max().sort_values()
    text = findings.finding_category(lines)
    assert f"Greedy, {best.index[-1]} prompts gain most: {best.iloc[-1]:.2f}× with " in text
    assert f"{best.index[0].capitalize()} prompts gain least: {best.iloc[0]:.2f}× with " in text
    assert "(n = " in text
    assert findings.finding_category(lines[lines["category"] == "chat"]).startswith("Greedy, only chat prompts were")


def test_a_category_with_enough_prompts_has_an_interval_and_no_number():
    lines = PAGE.lines.assign(num_prompts=5, speedup_low=PAGE.lines["speedup"] - 0.1, speedup_high=9.0)
    text = findings.finding_category(lines)
    assert "95 % interval" in text
    assert "n = " not in text


def test_the_table_lists_every_line_with_its_number_of_prompts():
    table = category_table(PAGE.lines)
    assert len(table) == len(PAGE.lines)
    assert set(table["prompt groups"]) == {"1", "2"}
