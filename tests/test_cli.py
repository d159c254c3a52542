"""The command line: one line for a mistake, before anything is loaded."""

import json
import re

import pytest
import torch

from specdec_lib import __main__ as cli
from specdec_lib import commands
from specdec_lib.config import load_params
from specdec_lib.measure.sweep import run_sweep_here


def test_an_unknown_gpu_name_is_one_line_and_exit_code_2(capsys):
    assert cli.main(["run", "--gpu", "abacus"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no params file for GPU=abacus: choose one of ")
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_study_without_that_gpu_names_both(capsys, tmp_path):
    assert cli.main(["run", "--gpu", "h100", "--outputs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "'H100'" in error
    assert "no CUDA device" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "message"), [({"pair": "nope"}, "unknown pair"), ({"price": "nope"}, "nope")])
def test_what_does_not_exist_is_refused_before_the_first_notebook(change, message):
    with pytest.raises(ValueError, match=message):
        commands.check_study(load_params("smoke").model_copy(update=change))


COMMANDS = [
    "run",
    "certify",
    "report",
    "compare",
    "bench-peers",
    "peers",
    "gpu-check",
    "publish",
    "draft",
    "draft-export",
]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_has_complete_help(command, capsys):
    """A description, and a line on every option."""
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    usage, description, *_ = said.split("\n\n")
    assert usage.startswith("usage: python -m specdec_lib")
    assert description.endswith(".")
    assert not re.findall(r"^  -.*[A-Z]$", said, flags=re.MULTILINE)  # an option without a word on it


def test_an_error_that_nobody_expected_is_one_line_unless_the_traceback_is_asked_for(capsys, monkeypatch, tmp_path):
    (tmp_path / "smoke").write_text("a file where a folder should be")
    arguments = ["report", "--gpu", "smoke", "--outputs", str(tmp_path)]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert cli.main([*arguments, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert cli.main(["--debug", *arguments]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_smoke_study_runs_from_papermill_to_html_and_is_kept(tmp_path, capfd):
    """The whole of make run GPU=smoke: three notebooks, three reports, an index; measured once only."""
    arguments = ["run", "--gpu", "smoke", "--outputs", str(tmp_path)]
    assert cli.main(arguments) == 0
    folder = tmp_path / "smoke"
    reports = sorted(path.name for path in (folder / "reports").glob("*.html"))
    assert reports == ["01_correctness.html", "02_latency_sweep.html", "03_cost_analysis.html"]
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert all(f"reports/{name}" in index for name in reports)
    assert 'href="smoke/index.html"' in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "specdec-transcript" in (folder / "reports" / "02_latency_sweep.html").read_text(encoding="utf-8")
    assert "tests of sampled output; a bias above" in index
    assert json.loads((folder / "exactness.json").read_text(encoding="utf-8"))["passed"]
    assert f"report: {folder / 'index.html'}" in capfd.readouterr().out
    run_sweep_here(load_params("smoke"), folder)
    assert ", 0 to run" in capfd.readouterr().out
