"""The certificate for readers: four checks with their outcomes, and panels whose titles can be read."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd

from specdec_lib.exactness.certificate import TABLES, read_certificate
from specdec_lib.report.figures.exactness import law_figure
from specdec_lib.report.notebooks import ROOT
from specdec_lib.report.show import table_html
from specdec_lib.report.tables.exactness import four_checks

CERTIFICATE = read_certificate(ROOT / "outputs" / "published" / "cpu")
EMPTY = {name: pd.DataFrame() for name in TABLES}


def test_what_was_measured_passed_with_its_numbers():
    table = four_checks(CERTIFICATE)
    assert list(table["check"]) == ["every path enumerated", "samplers with a bug", "greedy output", "sampled output"]
    assert set(table["outcome"]) == {"passed"}
    assert table["evidence"].str.contains(r"\d").all()
    assert table_html(table, "checks").count("<td>passed</td>") == 4  # also where all are alike
    assert f"{CERTIFICATE.enumeration['paths'].sum():,} paths" in table["evidence"][0]


def test_a_check_fails_by_its_own_failures_and_names_the_first():
    """Also where only the sentence of the failure was kept, and no table."""
    failures = ("mutants: wrong verdict on sound", "mutants: wrong verdict on x", "greedy: draft, gamma 4 differs")
    table = four_checks(replace(CERTIFICATE, kept_failures=failures, greedy=pd.DataFrame()))
    assert list(table["outcome"]) == ["passed", "failed", "failed", "passed"]
    assert table["evidence"][1] == "2 failed, the first: wrong verdict on sound."
    assert table["evidence"][2] == "1 failed, the first: draft, gamma 4 differs."


def test_what_was_not_run_is_not_called_passed():
    without_mutants = four_checks(replace(CERTIFICATE, mutants=pd.DataFrame()))
    assert list(without_mutants["outcome"]) == ["passed", "not run", "passed", "passed"]
    for nothing in (None, replace(CERTIFICATE, **EMPTY)):
        assert set(four_checks(nothing)["outcome"]) == {"not run"}


def test_titles_of_panels_do_not_overlap():
    samplers = CERTIFICATE.tests["sampler"].unique()
    expected = np.geomspace(5, 500, 20)
    cells = [pd.DataFrame({"sampler": name, "expected": expected, "observed": expected}) for name in samplers]
    figure = law_figure(pd.concat(cells))
    figure.draw_without_rendering()
    titles = [axes._left_title.get_window_extent() for axes in figure.axes]
    assert len(titles) == len(samplers) > 3
    assert not any(a.overlaps(b) for a, b in combinations(titles, 2))
    assert all(box.x1 <= figure.bbox.x1 for box in titles)
