"""The pairs on a model hub that can be named in a params file, each at a pinned commit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A pair by name. Revisions pin the hub's files; None for what is no hub id."""

    target: str
    draft: str
    target_revision: str | None = None
    draft_revision: str | None = None


PRESETS = {
    "qwen3-8b": Preset(
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-0.6B",
        "b968826d9c46dd6066d109eabc6255188de91218",
        "c1899de289a04d12100db370d81485cdf75e47ca",
    ),
    "qwen3-32b": Preset(
        "Qwen/Qwen3-32B",
        "Qwen/Qwen3-0.6B",
        "9216db5781bf21249d130ec9da846c4624c16137",
        "c1899de289a04d12100db370d81485cdf75e47ca",
    ),
    "qwen3-32b-1.7b": Preset(
        "Qwen/Qwen3-32B",
        "Qwen/Qwen3-1.7B",
        "9216db5781bf21249d130ec9da846c4624c16137",
        "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e",
    ),
    "llama-3.1-8b": Preset(
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        "0e9e39f249a16976918f6564b8830bc894c89659",
        "9213176726f574b556790deb65791e0c5aa438b6",
    ),
    "smollm2-1.7b": Preset(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "31b70e2e869a7173562077fd711b654946d38674",
        "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    ),
}

# SHA-256 of weight files by model and commit, as far as they are known here: of the other files, the hub's own SHA-256
# for the pinned commit is what is checked. Each was read on 2026-11-25 in several unrelated public projects that pin
# the same commit and agree.
KNOWN_WEIGHTS = {
    ("Qwen/Qwen3-0.6B", "c1899de289a04d12100db370d81485cdf75e47ca"): {
        "model.safetensors": "f47f71177f32bcd101b7573ec9171e6a57f4f4d31148d38e382306f42996874b",
    },
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"): {
        "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    },
}
