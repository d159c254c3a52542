"""From the formula to the measured speedup: the stages of rows whose every cost is known."""

import numpy as np
import pytest
from synthetic_rows import DRAFT_MS, TARGET_MS, step_costs, study, synthetic_rows

from specdec_lib.analysis.theory import walltime_improvement
from specdec_lib.analysis.waterfall import STAGES, waterfall
from specdec_lib.report.captions.sweep import finding_waterfall
from specdec_lib.report.figures.steps import waterfall_figure
from specdec_lib.report.tables.sweep import waterfall_table

PARAMS = study(batch_sizes=[1], prompt_tokens=[0], max_new_tokens=[96], compare_transformers=False)


@pytest.fixture(scope="module")
def stages():
    return waterfall(synthetic_rows(PARAMS), step_costs())


def test_every_speculative_line_has_every_stage(stages):
    assert len(stages) == 2 * 2 * len(PARAMS.num_draft_tokens)  # methods, temperatures
    assert stages[list(STAGES)].notna().all().all()


def test_known_costs_leave_nothing_unexplained(stages):
    """The synthetic machine's noise is 3 % a call and 5 % a step, over 15 calls of each line."""
    assert stages["unexplained"].abs().max() < 0.05


def test_costs_only_lower_what_was_expected(stages):
    assert (stages["draft_cost"] < stages["as_emitted"]).all()
    assert (stages["verify_cost"] < stages["draft_cost"]).all()
    assert np.allclose(stages["host_cost"], stages["verify_cost"])


def test_the_drafting_stage_is_theorem_3_8_of_the_tokens_as_emitted(stages):
    line = stages[(stages["method"] == "draft") & (stages["num_draft_tokens"] == 4)].iloc[0]
    free, paid = (walltime_improvement(0.5, 4, ratio) for ratio in (0, DRAFT_MS / TARGET_MS))
    assert line["draft_cost"] / line["as_emitted"] == pytest.approx(paid / free)


def test_a_cost_that_was_not_measured_leaves_the_rest_undefined():
    known = step_costs()
    stages = waterfall(synthetic_rows(PARAMS), known[known["model"] != "sampling"])
    assert stages["host_cost"].isna().all()
    assert stages["unexplained"].isna().all()
    assert stages["verify_cost"].notna().all()


def test_a_run_whose_costs_could_not_be_measured_still_has_its_formula():
    stages = waterfall(synthetic_rows(PARAMS), step_costs().iloc[:0])
    assert stages["iid"].notna().all()
    assert "were not measured here" in finding_waterfall(stages)
    waterfall_figure(stages.head(2))


def test_the_figure_names_every_stage_and_its_evidence(stages):
    headline = stages[stages["num_draft_tokens"] == PARAMS.headline_num_draft_tokens]
    figure = waterfall_figure(headline)
    assert "predicted" in figure.get_suptitle()
    assert len(figure.axes) == len(headline)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == list(STAGES.values())
    assert "unexplained" in finding_waterfall(headline)
    assert list(waterfall_table(headline))[-2:] == ["unexplained", "evidence"]
