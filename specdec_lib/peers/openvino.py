"""Checkpoints in OpenVINO's own format, float16, converted once and kept beside the engine's environment."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

from specdec_lib.peers.gguf import checkpoint_key, write_gguf
from specdec_lib.peers.install import PEERS, WORKERS, environment

ENGINE = "openvino"
FORMAT = "GGUF float16 as OpenVINO GenAI reads it, 1"  # raise the number when what is written changes


def openvino_model(checkpoint: Path) -> Path:
    """The folder of the checkpoint as OpenVINO reads it: the same weights, not compressed.

    Its name is a hash of the checkpoint's files, of the format and of OpenVINO's version.

    Raises:
        ValueError: the checkpoint is of a kind that is not converted.
        RuntimeError: OpenVINO cannot read it; with its reason.
    """
    models = environment(ENGINE).parent / f"{ENGINE}-models"
    folder = models / checkpoint_key(checkpoint, FORMAT, PEERS[ENGINE].requirement)
    if folder.exists():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix="making-") as work:
        made = Path(work) / "model"
        made.mkdir()
        gguf = made / "model.gguf"
        write_gguf(checkpoint, gguf)
        command = [str(environment(ENGINE) / "bin" / "python"), str(WORKERS / "openvino_engine.py"), str(gguf)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not (made / "openvino_model.xml").exists():
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"OpenVINO cannot convert {checkpoint}: {said}")
        gguf.unlink()
        with contextlib.suppress(OSError):  # another process was faster: its folder is as good
            made.rename(folder)
    return folder
