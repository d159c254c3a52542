"""Imports run one way, from the command line down to the params: see `LAYERS`."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import specdec_lib

PACKAGE = Path(specdec_lib.__file__).parent
LAYERS = [
    "methods",
    "config",
    "params_files",
    "hardware",
    "kernels",
    "models",
    "decoding",
    "machine",
    "study",
    "analysis",
    "exactness",
    "peers",
    "report",
    "cli",
    "__main__",
]
OTHERS = {"distill": "decoding", "__init__": "decoding"}  # the layer each of these counts as


@functools.cache
def loaded_by(module: str) -> set[str]:
    """What is loaded once `module` is imported."""
    code = f"import sys, {module}; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def layer_of(module: str) -> int | None:
    part = module.split(".")[1] if "." in module else "__init__"
    part = OTHERS.get(part, part)
    return LAYERS.index(part) if part in LAYERS else None


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_every_module_is_in_a_layer():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts == {*LAYERS, *OTHERS}


def test_no_module_imports_from_a_layer_above():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        if name == "specdec_lib.methods":  # it lists what is above, and imports an entry when it is used
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in imported(node):
                here, there = layer_of(name), layer_of(module)
                if module.startswith("specdec_lib") and here is not None and there is not None and there > here:
                    upward.append(f"{name} imports {module}")
    assert upward == []


def test_what_measures_loads_no_library_of_tables():
    """Some 80 MB, which would count to the memory that decoding takes; the process that gathers rows loads them."""
    assert not loaded_by("specdec_lib.study.workers.worker") & {"pandas", "pyarrow", "scipy.stats"}


def test_the_command_line_starts_without_what_takes_seconds():
    assert not loaded_by("specdec_lib.__main__") & {"torch", "transformers", "pandas"}


def test_toys_are_measured_without_the_models_of_transformers():
    """Which take as long to import as all else; a study of a real pair loads them with its weights."""
    assert "transformers.modeling_utils" not in loaded_by("specdec_lib.study.workers.worker")


def test_every_public_name_is_there():
    assert all(getattr(specdec_lib, name).__module__.startswith("specdec_lib.") for name in specdec_lib.__all__)
