"""Notebooks of a few code cells, for tests of what executes and renders notebooks."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = new_code_cell("output_folder = ''", metadata={"tags": ["parameters"]})


def write_notebook(folder, name, *code):
    """Write `folder/<name>.ipynb`: a title, a parameters cell and these code cells."""
    folder.mkdir(exist_ok=True)
    cells = [new_markdown_cell(f"# {name}"), PARAMETERS, *map(new_code_cell, code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / f"{name}.ipynb")
