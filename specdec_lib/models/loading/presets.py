"""The pairs that can be named in a params file, and what rows call the models of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from specdec_lib.hardware.catalog import load_models


class Checkpoint(NamedTuple):
    """Where the files of a model are."""

    where: str  # a folder, a GGUF file or a hub id
    revision: str | None = None  # the hub's commit


TOY = "toy"
EMBEDDED_DRAFTS = {  # the embedded target with each of the shipped drafts
    "smollm2-135m-embedded": "smollm2-135m-eagle",
    "smollm2-135m-embedded-plain": "smollm2-135m-2layer",
}
PRESETS = {  # pairs on the hub: target and draft in hardware/models.yaml
    "qwen3-4b": ("qwen3-4b", "qwen3-0.6b"),
    "qwen3-8b": ("qwen3-8b", "qwen3-0.6b"),
    "qwen3-8b-fp8": ("qwen3-8b-fp8", "qwen3-0.6b"),
    "qwen3-14b": ("qwen3-14b", "qwen3-0.6b"),
    "qwen3-32b": ("qwen3-32b", "qwen3-0.6b"),
    "qwen3-32b-1.7b": ("qwen3-32b", "qwen3-1.7b"),
    "qwen3-32b-fp8": ("qwen3-32b-fp8", "qwen3-0.6b"),
    "qwen3-32b-awq": ("qwen3-32b-awq", "qwen3-0.6b"),
    "qwen3-30b-a3b": ("qwen3-30b-a3b", "qwen3-0.6b"),
    "qwen3.5-9b": ("qwen3.5-9b", "qwen3.5-0.8b"),
    "qwen3.6-27b": ("qwen3.6-27b", "qwen3.5-0.8b"),
    "qwen3.6-35b-a3b": ("qwen3.6-35b-a3b", "qwen3.5-0.8b"),
    "llama-3.1-8b": ("llama-3.1-8b", "llama-3.2-1b"),
    "llama-3.3-70b": ("llama-3.3-70b", "llama-3.2-1b"),
    "llama-3.3-70b-3b": ("llama-3.3-70b", "llama-3.2-3b"),
    "gemma-3-12b": ("gemma-3-12b", "gemma-3-1b"),
    "gemma-3-27b": ("gemma-3-27b", "gemma-3-1b"),
    "gpt-oss-120b": ("gpt-oss-120b", "gpt-oss-20b"),
    "glm-4-32b": ("glm-4-32b", "glm-4-9b"),
    "smollm2-1.7b": ("smollm2-1.7b", "smollm2-135m"),
}


HEAD_PRESETS = {  # targets with published heads; commits as a public benchmark pins them (2nd)
    "qwen3-8b-eagle3": (
        "qwen3-8b", Checkpoint("RedHatAI/Qwen3-8B-speculator.eagle3", "08610ffa01dd9f16731fe8f627b85905b6aa51c4"),
    ),
    "llama-3.1-8b-eagle3": (
        "llama-3.1-8b",
        Checkpoint("RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3", "f4fa34a8f803a0ba75d048d6b3dbc1ad5149e9ac"),
    ),
}  # fmt: skip


def pair_names() -> list[str]:
    """The presets that `load_pair` knows."""
    return [TOY, *EMBEDDED_DRAFTS, *PRESETS, *HEAD_PRESETS]


def checkpoints_of(name: str | None, target: str | None, draft: str | None, *revisions: str | None) -> list[Checkpoint]:
    """The given target and draft with their revisions, or those of the preset `name`; ValueError if there is none."""
    if target and draft:
        return [Checkpoint(*each) for each in zip((target, draft), revisions, strict=True)]
    if name in HEAD_PRESETS:
        known, head = HEAD_PRESETS[name]
        return [Checkpoint(str(load_models()[known].hub_id), load_models()[known].revision), head]
    if name not in PRESETS:
        raise ValueError(f"unknown pair {name!r}: choose one of {', '.join(pair_names())}")
    models = [load_models()[key] for key in PRESETS[name]]
    return [Checkpoint(str(model.hub_id), model.revision) for model in models]


def names_of(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """What rows call models: hub ids as they are; folders and files by the shortest ends of their paths that differ."""
    paths = [Path(where).absolute() for where, revision in checkpoints if revision is None and Path(where).exists()]

    def name(where: str, revision: str | None) -> str:
        path = Path(where).absolute()
        if revision is not None or path not in paths:
            return where
        ends = [path.parts[-count:] for count in range(1, len(path.parts) + 1)]
        others = [other for other in paths if other != path]
        return "/".join(next(end for end in ends if all(other.parts[-len(end) :] != end for other in others)))

    return [name(*checkpoint) for checkpoint in checkpoints]


def known_weights(where: str, commit: str) -> dict[str, str]:
    """The SHA-256 of weight files of a hub id at a commit, as far as `hardware/models.yaml` has them."""
    return next((m.weights for m in load_models().values() if (m.hub_id, m.revision) == (where, commit)), {})
