"""Notebooks are thin but alive: literals, short cells that call the library, committed without outputs."""

import ast

import nbformat
import pytest

from specdec_lib.params_files import data_folder, finished_run
from specdec_lib.report.notebooks import NOTEBOOKS
from specdec_lib.report.pages import DATA, STUDY

FOUND = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
LONGEST_CELL = 10


def cells(name, kind):
    return [cell for cell in nbformat.read(FOUND[name], as_version=4).cells if cell.cell_type == kind]


@pytest.mark.parametrize("name", FOUND)
def test_a_notebook_is_valid_and_committed_without_outputs(name):
    notebook = nbformat.read(FOUND[name], as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.title
    assert not any(cell.outputs or cell.execution_count for cell in cells(name, "code"))


@pytest.mark.parametrize("name", FOUND)
def test_code_cells_are_short_and_define_nothing(name):
    for cell in cells(name, "code"):
        nodes = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not nodes & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= LONGEST_CELL, cell.source
        assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", DATA)
def test_opened_by_hand_a_notebook_reads_a_published_run(name):
    (tagged,) = [cell for cell in cells(name, "code") if "parameters" in cell.metadata.get("tags", [])]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged.source).body}
    assert values.keys() == {"gpu", "overrides", "output_folder"}
    assert (data_folder(values["gpu"], values["output_folder"]) / DATA[name]).is_file()
    assert finished_run(values["gpu"])


@pytest.mark.parametrize("name", STUDY)
def test_a_figure_comes_after_prose(name):
    previous = None
    for cell in nbformat.read(FOUND[name], as_version=4).cells:
        if cell.cell_type == "code" and "_figure(" in cell.source:
            assert previous.cell_type == "markdown" or "_figure(" in previous.source
        previous = cell
