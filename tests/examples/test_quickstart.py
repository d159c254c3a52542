"""The quickstart notebook runs, checks that greedy texts are equal, and is silent on stderr; here with the toy pair."""

import nbformat
import pytest

from specdec_lib.report.notebooks import NOTEBOOKS, execute
from specdec_lib.report.render import render_page


def test_one_token_is_refused_with_the_reason(tmp_path):
    """It comes from the prompt: nothing is drafted, and there is no time per token."""
    executed = tmp_path / "00_quickstart.ipynb"
    failure = execute(NOTEBOOKS / "00_quickstart.ipynb", executed, {"pair_name": "toy", "max_new_tokens": 1})
    assert "none is drafted: give max_new_tokens 2 or more" in str(failure)


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom_and_can_be_rendered(tmp_path):
    executed = tmp_path / "00_quickstart.ipynb"
    values = {"pair_name": "toy", "max_new_tokens": 24, "repetitions": 3}
    assert execute(NOTEBOOKS / "00_quickstart.ipynb", executed, values) is None
    page = render_page(executed)
    assert "toy" in page
    assert "24 new tokens in 1 row(s)" in page
    assert "tokens per target pass" in page
    assert "rejected" in page
    assert "Equal: all 24 greedy tokens" in page
    assert "Median and range" in page
    assert page.count('<div class="specdec-transcript">') == 1
    assert "With speculation: 24 tokens in" in page
    assert page.count('<div class="specdec-timeline">') == 1
    outputs = [output for cell in nbformat.read(executed, as_version=4).cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
