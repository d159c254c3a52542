"""Writes `recorded_heads/`: tiny random heads as the package `speculators` saves them, and what it computes with them.

Run by hand, in an environment of its own, as its pins differ from ours:
`pip install torch transformers==5.19.0 speculators==0.9.0`, then `python tests/support/record_heads.py`.

Next to each folder is a file of what was recorded: tokens `[1, T]` and states `[1, T, F]` of
pairs, and the logits `[1, T, scored]` of each step of its unrolled forward. At step j the output at index t is that of
the token at t + j, after t + 1 pairs with the target's states and j drafted positions.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from speculators import SpeculatorModel, SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, Qwen3Config

HERE = Path(__file__).parent / "recorded_heads"
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 128, "num_hidden_layers": 1, "rms_norm_eps": 1e-6,
}  # fmt: skip
FEATURE_LAYERS = [1, 2, 4]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
TOKENS, STEPS, REDUCED = 12, 3, 24


def training(algorithm):
    verifier = VerifierConfig(name_or_path="somebody/tiny-target", architectures=["LlamaForCausalLM"])
    proposal = GreedyTokenProposalConfig(speculative_tokens=STEPS)
    return SpeculatorsConfig(
        algorithm=algorithm, proposal_methods=[proposal], default_proposal_method="greedy", verifier=verifier
    )


def eagle3(layers, draft_vocab_size, **flags):
    layers._attn_implementation = "eager"
    return Eagle3SpeculatorConfig(
        transformer_layer_config=layers,
        draft_vocab_size=draft_vocab_size,
        eagle_aux_hidden_state_layer_ids=FEATURE_LAYERS,
        speculators_config=training("eagle3"),
        **flags,
    )


HEADS = {
    "eagle3": eagle3(LlamaConfig(**SIZES), REDUCED),
    "eagle3-norm-before-residual": eagle3(
        Qwen3Config(**SIZES), REDUCED, norm_before_residual=True, norm_output=True, fc_norm=True
    ),
    "eagle3-two-layers": eagle3(
        LlamaConfig(**SIZES | {"num_hidden_layers": 2, "attention_bias": True, "rope_parameters": LLAMA3}),
        SIZES["vocab_size"],
        norm_before_residual=True,
        norm_before_fc=True,
    ),
}


@torch.no_grad()
def fill(model, generator):
    """Random weights, large enough that no part of the head is without effect, and a random reduced vocabulary."""
    for name, weight in model.named_parameters():
        weight.normal_(1 if "norm" in name else 0, 0.3, generator=generator)
    if model.d2t is not None:
        kept = torch.randperm(SIZES["vocab_size"], generator=generator)[: len(model.d2t)].sort().values
        model.d2t.copy_(kept - torch.arange(len(kept)))
        model.t2d.fill_(False)[kept] = True


def record(name, config):
    generator = torch.Generator().manual_seed(len(name))
    model = SpeculatorModel.registry[config.speculators_model_type](config).eval().float()
    fill(model, generator)
    tokens = torch.randint(SIZES["vocab_size"], (1, TOKENS), generator=generator)
    states = torch.randn(1, TOKENS, len(FEATURE_LAYERS) * SIZES["hidden_size"], generator=generator)
    found = []
    model.lm_head.register_forward_hook(lambda module, args, output: found.append(output.detach().clone()))
    with torch.no_grad():
        documents = torch.zeros(1, TOKENS, dtype=torch.int64)
        positions = torch.arange(TOKENS)[None]
        model(states, tokens, documents, position_ids=positions, ttt_steps=STEPS)
    model.save_pretrained(HERE / name)
    (HERE / name / "config.py").unlink()  # a copy of the package's code
    recorded = {"tokens": tokens, "states": states} | {f"logits.{step}": each for step, each in enumerate(found)}
    save_file(recorded, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or HEADS:
        record(chosen, HEADS[chosen])
