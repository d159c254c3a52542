"""Engines that cannot be installed here, each with the reason: they are listed, and nothing of them is run."""

from typing import Any

REASONS = {
    "gpt-fast": "is no package: its code is published as a repository alone",
    "flash-attention": "its package is source that is compiled with CUDA, and imports its kernels before anything else",
    "llama-cpp-python": "is published as source alone; llama.cpp itself is tested, its own prompt lookup is not",
    "mistral.rs": "its package drafts with multi-token-prediction assistants of published models alone",
    "SGLang": "its package is for GPUs",
    "TensorRT-LLM": "needs a GPU",
}
SUBJECTS: list[dict[str, Any]] = [{"name": name, "ways": [], "absent": reason} for name, reason in REASONS.items()]


def load(*_: Any, **__: Any) -> Any:
    """RuntimeError: there is nothing to load."""
    raise RuntimeError("it is not installed")
