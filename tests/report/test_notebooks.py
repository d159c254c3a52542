"""Notebooks are thin: literals, then calls into the library; committed without outputs."""

import ast

import nbformat
import pytest

from specdec_lib.config import StudyParams, load_params
from specdec_lib.report.pages import NOTEBOOKS, STUDY

FOUND = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
LONGEST_CELL = 10


def cells(name, kind):
    return [cell for cell in nbformat.read(FOUND[name], as_version=4).cells if cell.cell_type == kind]


def parameters(name):
    tagged = [cell for cell in cells(name, "code") if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    return tagged[0]


def test_every_notebook_of_the_study_is_there():
    assert set(STUDY) <= set(FOUND)


@pytest.mark.parametrize("name", FOUND)
def test_notebook_is_valid_with_ids_and_the_plain_kernel(name):
    notebook = nbformat.read(FOUND[name], as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.title
    assert all(cell.get("id") for cell in notebook.cells)


@pytest.mark.parametrize("name", FOUND)
def test_notebook_is_committed_without_outputs(name):
    assert not any(cell.outputs or cell.execution_count for cell in cells(name, "code"))


@pytest.mark.parametrize("name", FOUND)
def test_code_cells_are_short_and_define_nothing(name):
    for cell in cells(name, "code"):
        tree = ast.parse(cell.source)
        nodes = {type(node) for node in ast.walk(tree)}
        assert not nodes & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}
        if cell is not parameters(name) and "parameters" not in cell.metadata.get("tags", []):
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= LONGEST_CELL, cell.source
            assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", STUDY)
def test_parameters_are_literals_the_params_file_knows(name):
    """Papermill only warns of a name that a notebook does not know, so the two sets must be equal."""
    assignments = ast.parse(parameters(name).source).body
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in assignments}
    assert set(values) == {*StudyParams.model_fields, "output_folder"}
    values.pop("output_folder")
    assert StudyParams(**values) == load_params("smoke")


@pytest.mark.parametrize("name", STUDY)
def test_no_import_hides_a_parameter(name):
    imports = [node for cell in cells(name, "code") for node in ast.walk(ast.parse(cell.source))]
    names = {alias.asname or alias.name for node in imports if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not names & set(StudyParams.model_fields)


@pytest.mark.parametrize("name", STUDY)
def test_prose_comes_before_each_figure_and_a_finding_with_it(name):
    previous = None
    for cell in nbformat.read(FOUND[name], as_version=4).cells:
        if cell.cell_type == "code" and "plots." in cell.source:
            assert previous.cell_type == "markdown" or "plots." in previous.source
            assert cell.source.count("_figure(") == cell.source.count(".finding_")
        previous = cell


@pytest.mark.parametrize("name", STUDY)
def test_the_last_cell_marks_the_notebook_complete(name):
    assert cells(name, "code")[-1].source.splitlines()[-1].startswith("mark_complete(")
    assert f'"{name}"' in cells(name, "code")[-1].source
