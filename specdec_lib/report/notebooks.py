"""Execute notebooks with papermill, in a kernel of this very interpreter, library and working directory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from specdec_lib.config import cache_folder

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
TERMINAL = "SPECDEC_TERMINAL"  # tells the sweep in the kernel that its output ends in a terminal
START_TIMEOUT = "SPECDEC_START_TIMEOUT"  # seconds that a kernel may take to start, on a slow or shared machine


def execute(source: Path, executed: Path, values: dict[str, Any]) -> str | None:
    """Execute a notebook with these values of its `parameters` cell; returns what went wrong, or None."""
    import papermill
    from papermill.exceptions import PapermillException, PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what goes wrong is returned
    options = Config(
        KernelManager={"transport_encryption": "auto"},  # without it the kernel warns of plain TCP
        NotebookClient={"shutdown_kernel": "immediate"},  # the kernel holds nothing more, and Ctrl-C need not wait
    )
    try:
        with kernel_of_this_interpreter():
            cells = papermill.execute_notebook(
                source,
                executed,
                parameters=values,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                cwd=Path.cwd(),  # relative paths in variables mean the same there as here
                start_timeout=start_timeout(),
                config=options,
            ).cells
    except PapermillExecutionError as error:
        return f"failed: {error.ename}: {' '.join(str(error.evalue).split())}"
    except (PapermillException, RuntimeError) as error:
        reason = " ".join(str(error).split())
        slow = "respond" in reason  # in the words of nbclient
        return f"failed: {reason}{f'; set {START_TIMEOUT} to more seconds' if slow else ''}"
    code = [cell for cell in cells if cell.cell_type == "code"]
    if code[-1].execution_count is None:  # after a kernel died papermill reports no error
        return "stopped before its last cell: its kernel died, perhaps for lack of memory"
    return None


def start_timeout() -> int:
    """Seconds that a kernel may take to start: `SPECDEC_START_TIMEOUT`, by default ten minutes.

    Raises:
        ValueError: the variable is no positive whole number.
    """
    text = os.environ.get(START_TIMEOUT, "600")
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{START_TIMEOUT} is {text!r}: give the seconds that a kernel may take to start, such as 600")
    return int(text)


@contextlib.contextmanager
def kernel_of_this_interpreter() -> Iterator[None]:
    """Let `python3` mean this interpreter with this library, whatever the machine has registered; it needs no home."""
    from ipykernel.kernelspec import get_kernel_dict

    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder) / "kernels" / "python3"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps(get_kernel_dict()), encoding="utf-8")
        changed = {
            "JUPYTER_PATH": os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")])),
            "JUPYTER_RUNTIME_DIR": str(Path(folder) / "runtime"),
            "IPYTHONDIR": str(Path(folder) / "ipython"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            TERMINAL if sys.stderr.isatty() else "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        if not _has_home():
            changed |= {"HOME": folder, "SPECDEC_CACHE": str(cache_folder())}
        with patch.dict(os.environ, changed):
            yield


def _has_home() -> bool:
    """Whether the user has a home directory; in many containers there is none."""
    try:
        return bool(Path.home())
    except RuntimeError:
        return False
