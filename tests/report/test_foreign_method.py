"""A method from outside the package, named in `plugins`, goes through a whole study: certificate, sweep and reports."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from specdec_lib.config import load_params
from specdec_lib.methods import METHODS
from specdec_lib.report.pages import make_reports

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SMALL = {"batch_sizes": [1], "num_draft_tokens": [2, 4], "max_new_tokens": [8], "correctness_samples": 200}


@pytest.fixture
def plugin(monkeypatch):
    """The module can be imported here, in kernels and in workers; its method is gone after the test."""
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=":")
    yield "foreign_method"
    METHODS.pop("echo", None)
    sys.modules.pop("foreign_method", None)


@pytest.mark.slow
def test_a_registered_method_is_certified_measured_and_shown_like_any_other(plugin, tmp_path):
    params = load_params("smoke", SMALL | {"plugins": [plugin], "methods": ["echo", "draft"]})
    index = make_reports(params, tmp_path)

    folder = tmp_path / "smoke"
    certificate = json.loads((folder / "exactness.json").read_text(encoding="utf-8"))
    assert certificate["passed"]
    assert "echo" in set(pd.DataFrame(certificate["greedy"])["method"])
    rows = pd.read_parquet(folder / "results.parquet")
    echo = rows[rows["method"] == "echo"]
    assert len(echo)
    assert set(echo["status"]) == {"ok"}
    assert set(echo["draft_id"]) == {"echo"}
    assert echo["drafted_tokens"].sum() > 0

    label = METHODS["echo"].label
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (folder / "reports").iterdir()}
    assert pages.keys() == {"01_correctness", "02_latency_sweep", "03_cost_analysis"}
    assert all(label in page for page in pages.values())
    waterfall = re.search(r'alt="From formula[^"]*"', pages["02_latency_sweep"])
    assert waterfall
    assert label in waterfall[0]
    assert f"{label}, γ = 4" in index.read_text(encoding="utf-8")
