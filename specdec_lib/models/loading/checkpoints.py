"""Models of Hugging Face: what is refused before any weights are read, and how one becomes a `LanguageModel`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from specdec_lib.config import CUSTOM_PAIR, INT8, StudyParams
from specdec_lib.hardware.catalog import load_models
from specdec_lib.models import host_memory
from specdec_lib.models.attention import our_attention, set_attention
from specdec_lib.models.engines.engine import EagerEngine
from specdec_lib.models.engines.kernels import KernelEngine
from specdec_lib.models.loading.architectures import auto_class, check_architecture, text_config, text_model
from specdec_lib.models.loading.config_checks import check_quantisation, check_rows
from specdec_lib.models.loading.faithful import FOREIGN, refusing_foreign_code
from specdec_lib.models.loading.presets import PRESETS, Checkpoint
from specdec_lib.models.loading.tested_architectures import read_as
from specdec_lib.models.loading.weights import check_weight_files, fetch_small_files, is_local, shapes_on_hub
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.tensor_parallel import check_heads, loading
from specdec_lib.models.translation import Translation, translate

RANDOM = " (random weights)"  # ends the names of such a pair and of its models
STANDARD_DEVIATION = 0.02


def check_checkpoints(
    checkpoints: Sequence[Checkpoint], tensor_parallel: int = 1, device: str = "cpu"
) -> tuple[transformers.PreTrainedTokenizerBase, list[Any], Translation | None]:
    """The target's tokenizer, the config of each model, and the draft's translation, before any weights are read.

    Raises:
        ValueError: missing or truncated files, weights in a form that cannot be read here, an unsuitable architecture,
            or vocabularies without a common token.
    """
    configs, tokenizers = [], []
    for checkpoint in checkpoints:
        local = check_weight_files(Path(checkpoint.where)) if is_local(*checkpoint) else None
        configs.append(config := from_hub(transformers.AutoConfig, checkpoint))
        check_quantisation(config, checkpoint.where, device)
        shapes = shapes_on_hub(*checkpoint) if local is None else local
        check_rows(config, shapes, checkpoint.where)
        check_architecture(config, checkpoint.where)
        tokenizers.append(from_hub(transformers.AutoTokenizer, checkpoint))
    translation = None
    if len(checkpoints) > 1:
        sizes = text_config(configs[0]).vocab_size, text_config(configs[1]).vocab_size
        names = checkpoints[0].where, checkpoints[1].where
        translation = translate(tokenizers[0], tokenizers[1], sizes, names)
    check_heads(configs[0], tensor_parallel, checkpoints[0].where)
    return tokenizers[0], configs, translation


def load_language_model(
    where: str,
    device: str,
    dtype: str,
    name: str,
    feature_layers: tuple[int, ...] = (),
    *,
    compiled: bool = True,
    tensor_parallel: int = 1,
) -> LanguageModel:
    """The causal LM in the folder `where`, ready for ragged batches; with `tensor_parallel`, this process's part of it.

    ValueError if it cannot be loaded, or no engine computes what its own code does.
    """
    config = from_hub(transformers.AutoConfig, Checkpoint(where))
    model, found = from_hub(
        auto_class(config),
        Checkpoint(where),
        dtype=_torch_dtype(dtype),
        use_safetensors=True,
        attn_implementation="eager",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # `check_tensors` names them
        **loading(tensor_parallel, device),
    )
    check_tensors(where, found)
    set_attention(model, our_attention())
    if tensor_parallel == 1 and dtype != INT8:  # which has its matrices in a block of their own
        host_memory.move(model)
    with refusing_foreign_code(name):
        language_model = LanguageModel(model, name, feature_layers, compiled=compiled and tensor_parallel == 1)
        language_model.check_faithful()
    if dtype == INT8:
        language_model.round_to_eight_bits()
    return language_model


def _torch_dtype(dtype: str) -> torch.dtype:
    """In which a checkpoint is read; "int8" rounds what was read in bfloat16."""
    found: torch.dtype = getattr(torch, "bfloat16" if dtype == INT8 else dtype)
    return found


def check_tensors(where: str, found: dict[str, Any]) -> None:
    """Refuse weights that are not all there: transformers would make up what is missing, anew at each load."""
    problems = {
        "missing_keys": "lacks",
        "mismatched_keys": "has in another shape",
        "unexpected_keys": "has more than its architecture:",
    }
    for kind, problem in problems.items():
        if names := sorted(map(_tensor, found.get(kind) or ())):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            prefixed = (key for key in sorted(found.get("unexpected_keys") or ()) if key.endswith(f".{names[0]}"))
            hint = f" (it has {key})" if kind == "missing_keys" and (key := next(prefixed, None)) else ""
            raise ValueError(
                f"{where} {problem} {', '.join(names[:3])}{more}: its files do not fit its config.json{hint}; save the "
                "model again with save_pretrained, or fetch it again"
            )


def _tensor(key: str | tuple[str, Sequence[int], Sequence[int]]) -> str:
    """A tensor of transformers' report, with both shapes if they differ."""
    if isinstance(key, str):
        return key
    name, found, wanted = key
    return f"{name} ({[*found]} instead of {[*wanted]})"


def from_hub(auto_class: Any, checkpoint: Checkpoint, **options: Any) -> Any:
    """Load a checkpoint with an auto class of transformers; code from a hub is never run."""
    with refusing(checkpoint.where), bars_in_a_terminal_only():
        return auto_class.from_pretrained(str(fetch_small_files(*checkpoint)), trust_remote_code=False, **options)


@contextmanager
def bars_in_a_terminal_only() -> Iterator[None]:
    """Progress bars of transformers where they can be redrawn; a notebook would show each as red lines."""
    log = transformers.utils.logging
    shown = log.is_progress_bar_enabled()
    if shown and not sys.stderr.isatty():
        log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Turn every failure of a hub or a file into a ValueError of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, StrictDataclassError, ImportError, *FOREIGN) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "check the path or hub id and that its safetensors files are complete; delete and fetch them again"
        raise ValueError(f"cannot load {where}: {reason} - {remedy}") from error


def random_shapes(params: StudyParams) -> list[tuple[str, Any]]:
    """Names and configs of target and draft of a study with `weights: random`.

    The two models of a preset have one vocabulary, but may be padded to other sizes: both get the larger.

    ValueError for unknown names, an unsuitable architecture, or vocabularies of two sizes.
    """
    names = (params.target, params.draft) if params.target and params.draft else PRESETS.get(params.pair)
    if names is None:
        known = ", ".join([*PRESETS, CUSTOM_PAIR])
        raise ValueError(f"weights: random knows no shapes for pair {params.pair!r}: choose one of {known}")
    shapes = [(name, config_of(name)) for name in names]
    for name, config in shapes:
        check_architecture(config, name)
    texts = [text_config(config) for _, config in shapes]
    if params.pair in PRESETS:
        for config in texts:
            config.vocab_size = max(each.vocab_size for each in texts)
    target, draft = (config.vocab_size for config in texts)
    if target != draft:
        what = f"{' and '.join(names)} have vocabularies of {target} and {draft} tokens"
        raise ValueError(f"{what}: choose shapes of one family")
    return shapes


def check_eight_bits(configs: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse models that the kernels do not compute, which alone hold matrices in 8 bits; a ValueError names one."""
    for config, name in zip(configs, names, strict=True):
        with torch.device("meta"):
            body = text_model(auto_class(config).from_config(config, dtype=torch.bfloat16))
        if not KernelEngine.fits(body):
            raise ValueError(
                f"dtype is int8, which only the CPU kernels have, and they do not compute {name} (type "
                f"{text_config(config).model_type}): give bfloat16, or a model of the last list in docs/models.md"
            )


def check_dense(params: StudyParams) -> None:
    """Refuse, by a ValueError, to stand random weights in 16 bits for a quantised checkpoint."""
    names = (params.target, params.draft) if params.target else PRESETS.get(params.pair, ())
    for model in (load_models()[name] for name in names if name in load_models()):
        if model.quantised:
            raise ValueError(
                f"weights: random are not quantised, and {model.hub_id} is, by {model.quantised}: choose shapes of "
                "another model, or weights: trained"
            )


def config_of(name: str) -> Any:
    """The config of a model in `hardware/models.yaml` or in a folder; ValueError if there is none."""
    models = load_models()
    if name in models:
        return transformers.AutoConfig.for_model(**copy.deepcopy(models[name].config))
    if (Path(name) / "config.json").is_file():
        from specdec_lib.models.published.config import is_published_head  # which refuses by what is here

        if is_published_head(Checkpoint(name)):
            raise ValueError(f"weights: random makes models, and {name} is a draft head: give the folder of a model")
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    remedy = f"give a folder with a config.json, or one of {', '.join(models)}"
    raise ValueError(f"weights: random needs the shape of {name!r}: {remedy}")


def random_model(name: str, config: Any, device: str, dtype: str, seed: int) -> LanguageModel:
    """A model whose matrices are normal noise: real latency, memory and energy, and text that means nothing."""
    with torch.device(device):
        model = auto_class(config).from_config(config, dtype=_torch_dtype(dtype), attn_implementation="eager")
    if read_as(config) in (None, EagerEngine.name):  # others attend as their own code does
        set_attention(model, our_attention())
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:  # norms stay as they are initialised
                weight.normal_(0, STANDARD_DEVIATION, generator=generator)
    if dtype != INT8:
        host_memory.move(model)
    language_model = LanguageModel(model, Path(name).name + RANDOM)
    if dtype == INT8:
        language_model.round_to_eight_bits()
    return language_model
