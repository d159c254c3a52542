"""Checkpoints in OpenVINO's own format, float16, converted once and kept beside the engine's environment."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import tempfile
from pathlib import Path

from specdec_lib.measure.peer_gguf import write_gguf
from specdec_lib.measure.peer_install import PEERS, WORKERS, environment
from specdec_lib.models.weights import sha256

ENGINE = "openvino"
FORMAT = "GGUF float16 as OpenVINO GenAI reads it, 1"  # raise the number when what is written changes


def openvino_model(checkpoint: Path) -> Path:
    """The folder of the checkpoint as OpenVINO reads it: the same weights, not compressed.

    Its name is a hash of the checkpoint's files, of the format and of OpenVINO's version.

    Raises:
        ValueError: the checkpoint is of a kind that is not converted.
        RuntimeError: OpenVINO cannot read it; with its reason.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is no folder: only checkpoints on this machine are converted for OpenVINO")
    models = environment(ENGINE).parent / f"{ENGINE}-models"
    folder = models / _key(checkpoint)
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


def _key(checkpoint: Path) -> str:
    files = sorted([*checkpoint.glob("*.safetensors"), checkpoint / "config.json", checkpoint / "tokenizer.json"])
    told = [FORMAT, PEERS[ENGINE].requirement, *(sha256(path) for path in files)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
