"""A finished run folder is enough: today's tables, figures and captions render from published data, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

PUBLISHED = sorted(path.parent for path in Path("outputs/published").resolve().glob("*/results.parquet"))
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np, pandas as pd
from specdec_lib.analysis import comparison, cost, headline, metrics, prediction
from specdec_lib.analysis.batching import batch_gains
from specdec_lib.analysis.cost_model.calibrated import calibrated_errors
from specdec_lib.analysis.crossover import measured_crossovers
from specdec_lib.analysis.step_table import read_step_costs, verification_costs
from specdec_lib.analysis.waterfall import waterfall
from specdec_lib.config import params_of_run
from specdec_lib.hardware import catalog
from specdec_lib.report.captions import comparison as of_gpus
from specdec_lib.report.captions import cost as of_cost
from specdec_lib.report.captions import sweep as of_sweep
from specdec_lib.report.figures import comparison as gpu_plots
from specdec_lib.report.figures import cost as cost_plots
from specdec_lib.report.figures import steps as step_plots
from specdec_lib.report.figures import sweep as plots
from specdec_lib.report.tables import comparison as gpu_tables
from specdec_lib.report.tables import sweep as tables

folder = Path(sys.argv[1])
run = comparison.read_run(folder)
rows, params, costs = run.rows, run.params, read_step_costs(folder)
lines, at_headline = metrics.speedups(rows), headline.headline(rows, params)
by_gamma, by_batch = (headline.along(lines, params, axis) for axis in ("num_draft_tokens", "batch_size"))
predicted = prediction.predicted_speedups(by_gamma, costs, rows)
positions = metrics.acceptance_by_position(headline.at_headline(rows, params))
gaps = metrics.token_gaps(headline.at_headline(rows, params))
crossovers = measured_crossovers(headline.along(rows, params, "batch_size"), params.gpu)
gains, stages = batch_gains(by_batch), waterfall(headline.every_gamma(rows, params), costs)
few, verifying = headline.at_headline(stages, params), verification_costs(costs, rows)
dollars = cost.cost_table(lines, run.price.usd_per_hour)
front = cost.with_front(headline.every_batch(dollars, params), ["temperature"])
everything, errors = comparison.pareto(comparison.settings([run], [])), calibrated_errors(run)
note = of_cost.price_note(run.price)
assert "torch" not in sys.modules, "reading measures nothing, and needs no torch"

figures = [
    plots.speedup_figure(by_gamma, "num_draft_tokens", predicted), plots.acceptance_figure(positions),
    plots.speedup_figure(by_batch, "batch_size"), plots.tpot_figure(by_batch), plots.memory_figure(by_batch),
    plots.token_gap_figure(gaps), step_plots.waterfall_figure(few), step_plots.verification_figure(verifying),
    cost_plots.cost_figure(headline.at_headline(dollars, params), note), cost_plots.pareto_figure(front, note),
    gpu_plots.crossover_figure(crossovers), gpu_plots.pareto_figure(everything),
]
for figure in figures:
    figure.canvas.draw()
shown = [
    tables.speedup_table(lines), tables.latency_table(at_headline), tables.trouble_table(rows),
    tables.batching_table(gains), tables.crossover_table(crossovers), tables.verification_table(verifying),
    tables.waterfall_table(stages), tables.cost_columns(dollars), gpu_tables.error_columns(errors.table),
    gpu_tables.headlines_table(comparison.headlines([run], [])),
    gpu_tables.cheapest_table(comparison.cheapest_under(everything, [10.0, 50.0])),
]
captions = [
    of_sweep.finding_headline(at_headline), of_sweep.finding_gamma(by_gamma, predicted),
    of_sweep.finding_acceptance(positions), of_sweep.finding_crossover(crossovers), of_sweep.finding_batches(gains),
    of_sweep.finding_tpot(by_batch), of_sweep.finding_memory(by_batch), of_sweep.finding_token_gaps(gaps),
    of_sweep.finding_transformers(headline.headline_over_transformers(rows, params)),
    of_sweep.finding_waterfall(few), of_sweep.finding_verification(verifying),
    of_cost.finding_cost(dollars), of_cost.finding_pareto(front), of_gpus.finding_error(errors),
    of_gpus.finding_headlines(comparison.headlines([run], [])), of_gpus.sources([run], []),
]
assert "torch" not in sys.modules
print(*captions, *(table.head(4).to_string() for table in shown), sep="\\n")
if len(sys.argv) > 2:
    for index, figure in enumerate(figures):
        figure.savefig(f"{sys.argv[2]}/{index:02d}.png", dpi=80)
"""


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_published_run_renders_without_torch(folder):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.replace("nanosecond", "")
    assert "<NA>" not in done.stdout
