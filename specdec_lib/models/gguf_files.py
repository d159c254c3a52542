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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from specdec_lib.config import cache_folder
from specdec_lib.models.checkpoints import check_tensors
from specdec_lib.models.weights import sha256

SUFFIX = ".gguf"
PRECISION = "precision.json"  # next to the weights: how the file held them
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
DECISIVE = ("rope.scaling.type", "rope.scaling.factor", "rope.scale", "_scale", ".scale", "softcapping", "window")
NEUTRAL = (0, 1, "none")  # values at which such a setting changes nothing
REMEDY = "give safetensors of the model instead"

logger = logging.getLogger(__name__)


def dense_checkpoint(path: Path) -> Path:
    """The folder of the checkpoint that a GGUF file holds, in bfloat16; made at the first call.

    ValueError for a file that is missing, damaged or a part of one, of an architecture that transformers does not read,
    or with tensors or settings that it would leave out.
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
        dense = Path(work) / "dense"
        try:
            held = _checked(path)
            logger.warning("dequantising %s (%s) to bfloat16, once", path.name, held)  # seen without any logging set-up
            dequantise(path, dense)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(f"{path} cannot be read as a whole ({reason}): {REMEDY}, or fetch it again") from error
        (dense / PRECISION).write_text(json.dumps(f"{held} as bfloat16"), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was faster: its folder is as good
            dense.rename(folder)
    return folder


def precision_of(folder: Path) -> str:
    """How the file of `dense_checkpoint` held its matrices, the most frequent way first: "Q4_K, Q6_K as bfloat16"."""
    return str(json.loads((folder / PRECISION).read_text(encoding="utf-8")))


def dequantise(path: Path, dense: Path) -> None:
    """Write a GGUF file as a bfloat16 safetensors checkpoint with its tokenizer and chat template.

    ValueError if tensors are missing, and whatever transformers raises.
    """
    where = _where(path)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, of which transformers lets one not be switched off
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        options = {"dtype": torch.bfloat16, "quantization_config": transformers.GgufConfig(dequantize=True)}
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            **where, **options, output_loading_info=True, trust_remote_code=False
        )
        check_tensors(str(path), found)
        model.save_pretrained(dense)
    tokenizer.save_pretrained(dense)


def _where(path: Path) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _checked(path: Path) -> str:
    """How the matrices of a file are held; ValueError for what transformers would leave out, and whatever it raises."""
    import gguf

    reader = gguf.GGUFReader(path)
    config = transformers.AutoConfig.from_pretrained(**_where(path), trust_remote_code=False)
    if left_out := [*_unread_tensors(reader, config), *_unread_settings(reader, config)]:
        raise ValueError(f"transformers would leave out {', '.join(left_out[:3])}")
    matrices = [tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1]
    return ", ".join(name for name, _ in Counter(matrices).most_common())


def _unread_tensors(reader: Any, config: Any) -> Iterator[str]:
    from transformers.integrations.gguf import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = reader.fields["general.architecture"].contents()
    if is_gguf_arch_supported(architecture):
        return  # loading reports them
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    for tensor in reader.tensors:
        if tensor.name not in known and tensor.name.removesuffix(".weight") not in known:
            yield tensor.name


def _unread_settings(reader: Any, config: Any) -> Iterator[str]:
    """Settings that change what a model computes, are not read, and are not what its architecture has anyway."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    architecture = reader.fields["general.architecture"].contents()
    read = GGUF_CONFIG_MAPPING.get(architecture, {})
    for key, field in reader.fields.items():
        name = key.removeprefix(f"{architecture}.")
        if name == key or name in read or not name.endswith(DECISIVE):
            continue
        value = field.contents()
        if value not in NEUTRAL and getattr(config, name.rpartition(".")[2], None) != value:
            yield f"{key} = {value}"
