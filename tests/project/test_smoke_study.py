"""The whole of `make run GPU=smoke`, from papermill to HTML, with a method from outside the package in it.

The method is named in the key `plugins`. It goes through certificate, sweep and reports like any other.
"""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from quick_kernel import kernels

from specdec_lib import __main__ as cli
from specdec_lib.methods import METHODS
from specdec_lib.params_files import load_params
from specdec_lib.study.sweep import run_sweep_here

pytestmark = pytest.mark.slow
SUPPORT = Path(__file__).resolve().parents[1] / "support"
CHANGES = {"plugins": ["foreign_method"], "methods": ["echo", "draft"], "max_new_tokens": [8]}
REPORTS = ["01_correctness", "02_latency_sweep", "03_cost_analysis", "06_advisor"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Where the study left its run. The method is gone after the tests."""
    outputs = tmp_path_factory.mktemp("outputs")
    changes = " ".join(f"{key}={value}" for key, value in CHANGES.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT), prepend=":")  # kernels and workers import the method too
        kernels(patch)
        assert cli.main(["run", "--gpu", "smoke", "--set", changes, "--outputs", str(outputs)]) == 0
    yield outputs
    METHODS.pop("echo", None)
    sys.modules.pop("foreign_method", None)


@pytest.fixture(scope="module")
def folder(outputs):
    return outputs / "smoke"


def pages(folder):
    return {page.stem: page.read_text(encoding="utf-8") for page in (folder / "reports").iterdir()}


def test_there_are_four_reports_and_an_index(outputs, folder):
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert sorted(pages(folder)) == REPORTS
    assert all(f"reports/{name}.html" in index for name in REPORTS)
    assert 'href="smoke/index.html"' in (outputs / "index.html").read_text(encoding="utf-8")
    assert "specdec-transcript" in pages(folder)["02_latency_sweep"]
    assert index.count(': <b class="good">passed</b>') == 4, "the four checks"
    assert "What to set" in index


def test_what_is_measured_is_measured_once(folder, capsys):
    run_sweep_here(load_params("smoke", CHANGES), folder)
    assert ", 0 to run" in capsys.readouterr().out


def test_a_registered_method_is_certified_and_measured(folder):
    certificate = json.loads((folder / "exactness.json").read_text(encoding="utf-8"))
    assert certificate["passed"]
    assert "echo" in set(pd.DataFrame(certificate["greedy"])["method"])
    rows = pd.read_parquet(folder / "results.parquet")
    echo = rows[rows["method"] == "echo"]
    assert len(echo)
    assert set(echo["status"]) == {"ok"}
    assert set(echo["draft_id"]) == {"echo"}
    assert echo["drafted_tokens"].sum() > 0


def test_a_registered_method_is_shown_on_every_page(folder):
    label = METHODS["echo"].label
    assert all(label in page for page in pages(folder).values())
    waterfall = re.search(r'alt="From formula[^"]*"', pages(folder)["02_latency_sweep"])
    assert waterfall
    assert label in waterfall[0]
    assert f"{label}, γ = 4" in (folder / "index.html").read_text(encoding="utf-8")
