"""Dollars per token and the price ratio at which speculation breaks even."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import study, synthetic_rows

from specdec_lib.analysis import cost, headline, metrics
from specdec_lib.hardware.catalog import usd_per_million_tokens


@pytest.fixture(scope="module")
def lines():
    return metrics.speedups(synthetic_rows())


def test_a_thousand_tokens_per_second_at_3_dollars_60_an_hour():
    assert usd_per_million_tokens(1000, 3.6) == pytest.approx(1.0)


@pytest.mark.parametrize("rate, price", [(0, 1), (float("nan"), 1), (10, -1)])
def test_impossible_rates_and_prices_are_refused(rate, price):
    with pytest.raises(ValueError, match="give"):
        usd_per_million_tokens(rate, price)


def test_at_the_break_even_ratio_both_cost_the_same():
    """For one prompt group the paired ratio is the ratio of throughputs, so the two costs are equal."""
    params = study(num_prompts=1, repetitions=1)
    at_headline = headline.headline(synthetic_rows(params), params)
    costs = cost.cost_table(at_headline, 0.1).set_index(["method", "temperature"])
    ratio = costs.loc[("draft", 0.0), "break_even_price_ratio"]
    dearer = cost.cost_table(at_headline, 0.1 * ratio).set_index(["method", "temperature"])
    baseline = costs.loc[("autoregressive", 0.0), "usd_per_million_tokens"]
    assert dearer.loc[("draft", 0.0), "usd_per_million_tokens"] == pytest.approx(baseline)


def test_break_even_does_not_depend_on_the_price(lines):
    cheap, dear = cost.cost_table(lines, 0.1), cost.cost_table(lines, 10)
    assert np.allclose(cheap["break_even_price_ratio"], dear["break_even_price_ratio"])
    assert np.allclose(100 * cheap["usd_per_million_tokens"], dear["usd_per_million_tokens"])


def test_the_front_holds_what_nothing_beats():
    lines = pd.DataFrame(
        {"tpot_ms": [10.0, 20.0, 20.0, 30.0, 5.0, 5.0], "usd_per_million_tokens": [3.0, 2.0, 2.5, 2.0, 9.0, 9.0]}
    )
    assert cost.on_front(lines).tolist() == [True, True, False, False, True, True]
