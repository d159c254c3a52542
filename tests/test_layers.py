"""Imports run one way: report -> analysis -> measure -> decoding -> models -> config."""

import ast
import subprocess
import sys
from pathlib import Path

import specdec_lib

PACKAGE = Path(specdec_lib.__file__).parent
LAYERS = [
    "config",
    "facts",
    "transcript_html",
    "hardware",
    "kernels",
    "models",
    "decoding",
    "measure",
    "analysis",
    "render",
    "index",
    "report",
    "publish",
    "audit",
    "gpu_check",
    "commands",
    "__main__",
]
BESIDE = {"distill": "decoding", "__init__": "decoding"}  # the layer each of these counts as


def layer_of(module: str) -> int | None:
    part = module.split(".")[1] if "." in module else "__init__"
    part = BESIDE.get(part, part)
    return LAYERS.index(part) if part in LAYERS else None


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_every_module_is_in_a_layer():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts == {*LAYERS, *BESIDE}


def test_no_module_imports_from_a_layer_above():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in imported(node):
                here, there = layer_of(name), layer_of(module)
                if module.startswith("specdec_lib") and here is not None and there is not None and there > here:
                    upward.append(f"{name} imports {module}")
    assert upward == []


def test_what_measures_loads_no_library_of_tables():
    """Some 80 MB, which would count to the memory that decoding takes; the process that gathers rows loads them."""
    code = "import sys, specdec_lib.measure.worker; print({'pandas', 'pyarrow', 'scipy.stats'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
