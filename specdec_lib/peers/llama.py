"""Checkpoints as llama.cpp reads them, converted once and kept beside the engine's environment."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from specdec_lib.peers.gguf import checkpoint_key, write_gguf
from specdec_lib.peers.install import environment

ENGINE = "llama.cpp"
FORMAT = "GGUF, 1"  # raise the number when what is written changes


def llama_model(checkpoint: Path, dtype: torch.dtype) -> Path:
    """The checkpoint as one GGUF file: the same weights, its matrices in `dtype`.

    Its name is a hash of the checkpoint's files and of the format.

    Raises:
        ValueError: the checkpoint is of a kind that is not converted.
    """
    models = environment(ENGINE).parent / f"{ENGINE}-models"
    path = models / f"{checkpoint_key(checkpoint, FORMAT, str(dtype))}.gguf"
    if not path.exists():
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models, prefix="making-") as work:
            write_gguf(checkpoint, Path(work) / path.name, dtype)
            (Path(work) / path.name).replace(path)
    return path
