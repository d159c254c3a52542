"""The quickstart notebook runs, and shows a pair, two results, a transcript and a plot; here with the toy pair."""

import pytest

from specdec_lib.report.notebooks import NOTEBOOKS, execute
from specdec_lib.report.render import render_page


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom_and_can_be_rendered(tmp_path):
    executed = tmp_path / "00_quickstart.ipynb"
    values = {"pair_name": "toy", "max_new_tokens": 24}
    assert execute(NOTEBOOKS / "00_quickstart.ipynb", executed, values) is None
    page = render_page(executed)
    assert "toy" in page
    assert "24 new tokens in 1 row(s)" in page
    assert "tokens per target pass" in page
    assert page.count('<div class="specdec-transcript">') == 1
    assert "With speculation: 24 tokens in" in page
    assert page.count('<div class="specdec-timeline">') == 1
