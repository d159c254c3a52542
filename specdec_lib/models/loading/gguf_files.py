"""GGUF files: dequantised once by transformers into an ordinary checkpoint, which is kept by the hash of the file.

What transformers would leave out of a file, such as factors of its positions, makes another model: it is refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from specdec_lib.config import cache_folder
from specdec_lib.models.loading.architectures import check_architecture
from specdec_lib.models.loading.checkpoints import check_tensors
from specdec_lib.models.loading.presets import Checkpoint, names_of
from specdec_lib.models.loading.weights import sha256

SUFFIX = ".gguf"
PRECISION = "precision.json"  # next to the weights: how the file held them
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
ARCHITECTURE = "general.architecture"
DECISIVE = ("rope.scaling.type", "rope.scaling.factor", "rope.scale", "_scale", ".scale", "softcapping", "window")
NEUTRAL = (0, 1, "none")  # values at which such a setting changes nothing

logger = logging.getLogger(__name__)


def dense_checkpoint(path: Path) -> Path:
    """The folder of the checkpoint that a GGUF file holds, in bfloat16; made at the first call.

    ValueError for a file that is missing, damaged or a part of one, of an architecture that cannot be read, or with
    tensors or settings that transformers would leave out.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: give the path of a GGUF file, or of a folder with a checkpoint")
    if PART.search(path.name):
        raise ValueError(f"{path} is a part of a model: merge all with llama-gguf-split --merge and give that file")
    folder = cache_folder() / "gguf" / f"{path.stem}-{sha256(path)[:16]}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as work:
        with _whole(path):
            held, config = _checked(path)
        check_architecture(config, str(path))
        logger.warning("dequantising %s (%s) to bfloat16, once", path.name, held)  # seen without any logging set-up
        dense = Path(work) / "dense"
        with _whole(path):
            dequantise(path, dense, config)
        (dense / PRECISION).write_text(json.dumps(f"{held} as bfloat16"), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was faster: its folder is as good
            dense.rename(folder)
    return folder


def precision_of(folder: Path) -> str:
    """How the file of `dense_checkpoint` held its matrices, the most frequent way first: "Q4_K, Q6_K as bfloat16"."""
    return str(json.loads((folder / PRECISION).read_text(encoding="utf-8")))


def dequantise(path: Path, dense: Path, config: Any = None) -> None:
    """Write a GGUF file as a bfloat16 safetensors checkpoint with its tokenizer and chat template.

    Without `config` it is read from the file. ValueError if tensors are missing, and whatever transformers raises.
    """
    where = _where(path)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, of which transformers lets one not be switched off
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        options = {"dtype": torch.bfloat16, "quantization_config": transformers.GgufConfig(dequantize=True)}
        options |= {} if config is None else {"config": config}
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            **where, **options, output_loading_info=True, trust_remote_code=False
        )
        check_tensors(str(path), found)
        model.save_pretrained(dense)
    tokenizer.save_pretrained(dense)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn whatever a reader of GGUF files raises into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        remedy = "give safetensors of the model instead, or fetch it again"
        raise ValueError(f"{path} cannot be read as a whole ({reason}): {remedy}") from error


def _where(path: Path) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _checked(path: Path) -> tuple[str, Any]:
    """How the matrices of a file are held, and its config; ValueError for what transformers would leave out."""
    from gguf import GGMLQuantizationType
    from transformers.integrations.gguf import GgufHeader, read_gguf_metadata

    metadata, names = read_gguf_metadata(str(path))  # at once, where the package gguf takes ten seconds
    config = transformers.AutoConfig.from_pretrained(**_where(path), trust_remote_code=False)
    architecture = metadata[ARCHITECTURE]
    if left_out := [*_unread_tensors(names, architecture, config), *_unread_settings(metadata, config)]:
        raise ValueError(f"transformers would leave out {', '.join(left_out[:3])}")
    tensors = GgufHeader.from_file(str(path)).tensors
    held = Counter(GGMLQuantizationType(tensor.ggml_type).name for tensor in tensors if len(tensor.shape) > 1)
    return ", ".join(name for name, _ in held.most_common()), config


def _unread_tensors(names: Iterable[str], architecture: str, config: Any) -> Iterator[str]:
    from transformers.integrations.gguf import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if is_gguf_arch_supported(architecture):
        return  # loading reports them
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    yield from (name for name in names if name not in known and name.removesuffix(".weight") not in known)


def _unread_settings(metadata: Mapping[str, Any], config: Any) -> Iterator[str]:
    """Settings that change what a model computes, are not read, and are not what its architecture has anyway."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    architecture = metadata[ARCHITECTURE]
    read = GGUF_CONFIG_MAPPING.get(architecture, {})
    for key, value in metadata.items():
        name = key.removeprefix(f"{architecture}.")
        if name == key or name in read or not name.endswith(DECISIVE):
            continue
        if value not in NEUTRAL and getattr(config, name.rpartition(".")[2], None) != value:
            yield f"{key} = {value}"


def opened(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints, with a folder for each GGUF file, and what rows call them: with the precision of such a file."""
    found, names = list(checkpoints), names_of(checkpoints)
    for place, (where, revision) in enumerate(checkpoints):
        if revision is None and where.endswith(SUFFIX):
            folder = dense_checkpoint(Path(where))
            found[place], names[place] = Checkpoint(str(folder)), f"{names[place]} ({precision_of(folder)})"
    return found, names
