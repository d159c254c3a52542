"""Runs that were published earlier compare with today's code, and the measured part needs no torch."""

import subprocess
import sys

import pytest

from specdec_lib.report.notebooks import ROOT

PUBLISHED = sorted(path.parent for path in (ROOT / "outputs" / "published").glob("*/results.parquet"))
SCRIPT = """
import sys
from pathlib import Path
from specdec_lib.analysis import comparison
from specdec_lib.analysis.cost_model.calibrated import calibrated_errors
from specdec_lib.analysis.sweep.crossover import measured_crossovers
from specdec_lib.report.captions import comparison as findings
from specdec_lib.report.captions.cost import finding_pareto
from specdec_lib.report.captions.sweep import finding_crossover
from specdec_lib.report.figures import comparison as plots
from specdec_lib.report.tables import comparison as tables
from specdec_lib.report.tables.sweep import crossover_table

run = comparison.read_run(Path(sys.argv[1]))
headlines, crossovers = comparison.headlines([run], []), measured_crossovers(run.rows, run.params.gpu)
lines, errors = comparison.pareto(comparison.settings([run], [])), calibrated_errors(run)
for figure in (plots.crossover_figure(crossovers), plots.pareto_figure(lines)):
    figure.canvas.draw()
print(findings.sources([run], []), finding_crossover(crossovers))
print(finding_pareto(lines), findings.finding_error(errors))
print(tables.headlines_table(headlines).to_string(), crossover_table(crossovers).to_string())
print(tables.error_columns(errors.table).to_string())
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_published_run_is_compared_without_torch(folder):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Fitted with γ" in done.stdout
    assert "<NA>" not in done.stdout
    assert " nan" not in done.stdout
