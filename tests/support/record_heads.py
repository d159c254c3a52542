"""Writes `recorded_heads/`: tiny random heads as the package `speculators` saves them, and what it computes with them.

Run by hand, in an environment of its own, as its pins differ from ours:
`pip install torch transformers==5.19.0 speculators==0.9.0`, then `python tests/support/record_heads.py`.

Next to each folder is a file of what was recorded: tokens `[1, T]` and states `[1, T, F]` of
pairs, and the logits `[1, T, scored]` of each step of its unrolled forward. At step j the output at index t is that of
the token at t + j, after t + 1 pairs with the target's states and j drafted positions. Of `mtp` there is one step, as
its training lets later steps attend to outputs of the same step, where decoding has those of the step before. Where the
head has its target's token rows, these are recorded too.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from speculators import SpeculatorModel, SpeculatorsConfig, VerifierConfig
from speculators.losses import resolve_loss_config
from speculators.models.dflash import DFlashSpeculatorConfig
from speculators.models.dflash import core as dflash
from speculators.models.eagle3 import Eagle3SpeculatorConfig
from speculators.models.mtp import MTPSpeculatorConfig
from speculators.models.peagle import PEagleSpeculatorConfig, core
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, Qwen3_5TextConfig, Qwen3Config

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
TOKENS, STEPS, REDUCED, BLOCK = 12, 3, 24, 4


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


def peagle(layers, draft_vocab_size, **flags):
    layers._attn_implementation = "eager"
    return PEagleSpeculatorConfig(
        transformer_layer_config=layers,
        draft_vocab_size=draft_vocab_size,
        eagle_aux_hidden_state_layer_ids=FEATURE_LAYERS,
        speculators_config=training("peagle"),
        mask_token_id=39,
        **flags,
    )


def mtp(layers):
    layers._attn_implementation = "eager"
    return MTPSpeculatorConfig(transformer_layer_config=layers, speculators_config=training("mtp"))


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
    "peagle": peagle(LlamaConfig(**SIZES | {"num_hidden_layers": 2}), REDUCED, norm_before_residual=True, fc_norm=True),
    "dflash": DFlashSpeculatorConfig(
        transformer_layer_config=Qwen3Config(**SIZES | {"num_hidden_layers": 2}, attn_implementation="eager"),
        draft_vocab_size=REDUCED,
        block_size=BLOCK,
        aux_hidden_state_layer_ids=FEATURE_LAYERS,
        mask_token_id=39,
        speculators_config=training("dflash"),
    ),
    "mtp": mtp(Qwen3Config(**SIZES)),
    "mtp-gated": mtp(Qwen3_5TextConfig(**SIZES | {"num_hidden_layers": 4, "pad_token_id": None})),
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


def run(kind, model, states, tokens):
    """Its forward as in training, which hands the logits to the hook."""
    if kind == "mtp":  # it shifts tokens itself, and leaves out the last steps + 1 positions
        text = torch.cat([tokens[:, :1], tokens, tokens[:, :1].expand(-1, STEPS)], dim=1)
        more = torch.zeros(1, STEPS + 1, states.shape[2])
        return model(text, torch.cat([states, more], dim=1))
    documents = torch.zeros(1, TOKENS, dtype=torch.int64)
    if kind == "dflash":  # a block after each pair
        text = torch.cat([tokens[:, :1], tokens, tokens[:, :1].expand(-1, BLOCK)], dim=1)
        states = torch.cat([states, torch.zeros(1, BLOCK + 1, states.shape[2])], dim=1)
        anchors = 1 + torch.arange(TOKENS)
        dflash.select_anchors = lambda *given: (anchors, torch.ones(TOKENS, dtype=torch.bool))
        last = states[:, :, : SIZES["hidden_size"]]
        loss, documents = resolve_loss_config("kl_div", "eager"), torch.zeros_like(text)
        return model(states, text, torch.ones(text.shape), last, documents, loss_config=loss, max_anchors=TOKENS)
    if kind == "peagle":  # every depth of every position, where training draws some
        depths = [torch.full((TOKENS - depth,), depth) for depth in range(STEPS)]
        anchors = [torch.arange(len(depth)) for depth in depths]
        core.generate_cod_sample_indices = lambda **options: (torch.cat(anchors), torch.cat(depths))
        last = states[:, :, : SIZES["hidden_size"]]
        loss = resolve_loss_config("kl_div", "eager")
        return model(states, tokens, documents, verifier_last_hidden_states=last, loss_config=loss, num_depths=STEPS)
    return model(states, tokens, documents, position_ids=torch.arange(TOKENS)[None], ttt_steps=STEPS)


def record(name, config):
    generator = torch.Generator().manual_seed(len(name))
    model = SpeculatorModel.registry[config.speculators_model_type](config).eval().float()
    fill(model, generator)
    tokens = torch.randint(SIZES["vocab_size"], (1, TOKENS), generator=generator)
    width = SIZES["hidden_size"] * (1 if config.speculators_model_type == "mtp" else len(FEATURE_LAYERS))
    states = torch.randn(1, TOKENS, width, generator=generator)
    found = []
    model.lm_head.register_forward_hook(lambda module, args, output: found.append(output.detach().clone()))
    with torch.no_grad():
        run(config.speculators_model_type, model, states, tokens)
    model.save_pretrained(HERE / name)
    (HERE / name / "config.py").unlink()  # a copy of the package's code
    if config.speculators_model_type == "dflash":
        found = found[0].unflatten(1, (TOKENS, BLOCK)).unbind(2)[1:]
    if config.speculators_model_type == "peagle":
        found = [torch.nn.functional.pad(each, (0, 0, 0, step)) for step, each in enumerate(
            found[0].split([TOKENS - step for step in range(STEPS)], dim=1)
        )]  # fmt: skip
    steps = found[:1] if config.speculators_model_type == "mtp" else found
    recorded = {"tokens": tokens, "states": states} | {
        f"logits.{step}": each.contiguous() for step, each in enumerate(steps)
    }
    if config.speculators_model_type in ("mtp", "dflash"):
        recorded |= {"embeddings": model.embed_tokens.weight.data, "output_rows": model.lm_head.weight.data}
    save_file(recorded, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or HEADS:
        record(chosen, HEADS[chosen])
