"""A cell of a finished run is decoded again, alone, to the same tokens; where it is not, the line says so."""

import json
from random import Random

import pytest
from toy_sweep import run_interrupted

from specdec_lib.__main__ import main
from specdec_lib.params_files import load_params
from specdec_lib.study import runner
from specdec_lib.study.rerun import rerun
from specdec_lib.study.run_folder import read_cell, write_cell
from specdec_lib.study.sweep import run_sweep_here


@pytest.fixture(scope="module")
def params():
    small = {"num_draft_tokens": [4], "batch_sizes": [1, 3], "repetitions": 2, "max_new_tokens": [12]}
    return load_params("smoke").model_copy(update=small | {"methods": ["draft", "ngram", "composite"]})


@pytest.fixture(scope="module")
def run(params, tmp_path_factory):
    """The outputs folder and the table of a sweep."""
    outputs = tmp_path_factory.mktemp("outputs")
    return outputs, run_sweep_here(params, outputs / "smoke")


def test_every_cell_alone_gives_the_tokens_of_the_run(run):
    """No other cell has run."""
    outputs, rows = run
    found = [rerun(outputs / "smoke", cell_id) for cell_id in rows["cell_id"].unique()]
    assert [(one.different, one.changed) for one in found] == [([], [])] * len(found)
    assert sum(one.compared for one in found) == rows["batch_size"].sum()


def test_rows_differ_from_each_other_unless_greedy(run):
    """The fingerprints would notice: every sampled row of every repetition has tokens of its own."""
    _, rows = run
    sampled = " ".join(rows.loc[rows["temperature"] == 1, "tokens_sha256"]).split()
    assert len(set(sampled)) == len(sampled)
    greedy = rows[(rows["temperature"] == 0) & (rows["batch_size"] == 3)]
    assert (greedy.groupby("prompt_group")["tokens_sha256"].nunique() == 1).all()  # all methods and repetitions agree


def tokens_of(rows):
    table = rows.drop_duplicates(["cell_id", "repetition"]).set_index(["cell_id", "repetition"])
    return table["tokens_sha256"].sort_index()


def test_neither_order_nor_interruption_changes_tokens(params, run, tmp_path, monkeypatch):
    """Blocks backwards, cells in another order within each, interrupted after seven cells and resumed."""
    whole, plan = tokens_of(run[1]), runner.plan
    monkeypatch.setattr(runner, "plan", lambda *arguments: plan(*arguments)[::-1])
    monkeypatch.setattr(runner.random, "Random", lambda text: Random(f"another order {text}"))
    run_interrupted(lambda: run_sweep_here(params, tmp_path), cells=7)
    assert tokens_of(run_sweep_here(params, tmp_path)).equals(whole)


def test_the_command_says_in_one_line_whether_tokens_are_the_same(run, capsys):
    outputs, rows = run
    folder, row = outputs / "smoke", rows[rows["batch_size"] == 3].iloc[-1]
    arguments = ["rerun", row["cell_id"], "--gpu", "smoke", "--outputs", str(outputs)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{row['cell_id']}: same tokens in all 6 decoded rows\n"
    kept = read_cell(folder, row["cell_id"])
    _, *others = kept[1]["tokens_sha256"].split()
    altered = kept[1] | {"tokens_sha256": " ".join(["0" * 16, *others])}
    write_cell(folder, row["cell_id"], [kept[0], altered])
    assert main(arguments) == 1
    assert capsys.readouterr().out == f"{row['cell_id']}: different tokens in 1 of 6 rows (repetition 1 row 0)\n"
    write_cell(folder, row["cell_id"], kept)


def test_what_changed_since_the_run_is_named(run):
    outputs, rows = run
    path = outputs / "smoke" / "environment.json"
    kept = path.read_text()
    facts = json.loads(kept)
    facts["runs"][rows["run_id"].iloc[0]]["source"]["software"] = "torch 1.0"
    path.write_text(json.dumps(facts))
    assert "since the run changed: software from torch 1.0 to torch 2" in (
        rerun(outputs / "smoke", rows["cell_id"].iloc[0]).sentence()
    )
    path.write_text(kept)


def test_an_unknown_cell_is_refused(run, capsys):
    assert main(["rerun", "0" * 16, "--gpu", "smoke", "--outputs", str(run[0])]) == 2
    assert "no finished cell 0" in capsys.readouterr().err
