"""The quickstart notebook runs, and shows a pair, two results, a transcript and a plot; here with the toy pair."""

import re

import papermill
import pytest

from specdec_lib.report.pages import pages as report
from specdec_lib.report.render import render_page


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom_and_can_be_rendered(tmp_path):
    executed = tmp_path / "00_quickstart.ipynb"
    with report._kernel_of_this_interpreter():
        papermill.execute_notebook(
            report.NOTEBOOKS / "00_quickstart.ipynb",
            executed,
            parameters={"pair_name": "toy", "max_new_tokens": 24},
            kernel_name="python3",
            progress_bar=False,
            cwd=report.ROOT,
        )
    page = render_page(executed)
    tables = re.findall(r"<caption>(.*?)</caption>", page)
    assert tables == ["Pair toy", "Autoregressive decoding", "Speculative decoding"]
    assert page.count('<div class="specdec-transcript">') == 1
    assert page.count("<img") == 1
    assert "With speculation: 24 tokens in" in page
    assert "<style>.specdec" not in page  # the page has the style sheet already
