"""transformers: `generate` with each kind of assistance, one text at a time, as it demands.

Why sampling with an assistant of another vocabulary is biased in 5.23.0 (read in `AssistantToTargetTranslator`): the
assistant's head is cut to the shared tokens in the order of a dictionary, and its logits are then reported in the order
of ids. So the draft's probabilities are those of other tokens. A second way mends just that.
"""

import random
from typing import Any

MANUAL = "'rejected tokens trigger standard sampling'; 'supports greedy search and sampling' (docs: Assisted decoding)"
CONSTANT = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
LOSSLESS = "constant length, no confidence threshold"
MTP_REPORT = "huggingface/transformers#47932"
T1, TOP_K = (1.0, 0, 1.0), (1.5, 2, 1.0)  # warm, so that top-k cuts off much of what a draft reports
NEW_DRAFTERS: list[dict[str, Any]] = [
    {"method": "MTP", "gammas": (1, 2), "samplings": (TOP_K, T1), "greedy": False, "report": MTP_REPORT},
    {"method": "DFlash", "gammas": (2,), "samplings": (TOP_K, T1), "greedy": False, "report": MTP_REPORT},
    {"method": "single position", "gammas": (2,), "samplings": (TOP_K, T1), "greedy": False, "report": MTP_REPORT},
]
BASELINE: dict[str, Any] = {"method": "none", "rule": "none", "gammas": (0,)}
SUBJECTS: list[dict[str, Any]] = [
    {
        "name": "transformers",
        "reloads": True,
        "ways": [
            BASELINE,
            {"method": "assistant", "manual": MANUAL},
            {"method": "assistant", "setting": LOSSLESS, "options": CONSTANT, "manual": MANUAL},
            {"method": "prompt lookup", "rule": "exact match", "gammas": (2, 4)},
            {"method": "early exit", "setting": LOSSLESS, "options": CONSTANT, "gammas": (2,)},
            {
                "method": "assistant with another vocabulary",
                "setting": LOSSLESS,
                "options": CONSTANT,
                "gammas": (2, 4),
            },
            {
                "method": "assistant with another vocabulary",
                "setting": "order of the draft's logits mended by us",
                "options": CONSTANT,
                "gammas": (2,),
                "samplings": (T1,),
                "greedy": False,
            },
            *NEW_DRAFTERS,
        ],
    },
    {
        "name": "transformers 5.15.0",
        "reloads": True,
        "requirement": "transformers==5.15.0 tokenizers==0.22.2 huggingface_hub==1.5.0",
        "megabytes": 70,
        "sees_ours": True,
        "dtypes": ("float32",),
        "ways": [BASELINE | {"samplings": ((1.0, 3, 1.0),)}, *NEW_DRAFTERS],
    },
]


class Serving:
    """A target, and what `generate` is given to assist it."""

    def __init__(self, target: Any, assistance: dict[str, Any]):
        self.target = target
        self.config = {key: value for key, value in assistance.items() if key in ("use_mtp", "speculation_type")}
        self.assistance = {key: value for key, value in assistance.items() if key not in self.config}

    def sample(
        self, prompts: list, n: int, seed: int, length: int, temperature: float, top_k: int, top_p: float
    ) -> list:
        """See `exactness.subjects`."""
        seeds = random.Random(seed)
        options = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        if not (self.assistance or self.config):
            return [self._generate([prompt] * n, length, seeds.randrange(2**63), options) for prompt in prompts]
        return [
            [self._generate([prompt], length, seeds.randrange(2**63), options)[0] for _ in range(n)]
            for prompt in prompts
        ]

    def greedy(self, prompts: list, length: int) -> list:
        """See `exactness.subjects`."""
        return [self._generate([prompt], length, 0, {"do_sample": False})[0] for prompt in prompts]

    def _generate(self, prompts: list, length: int, seed: int, options: dict[str, Any]) -> list:
        import torch
        from transformers import GenerationConfig

        torch.manual_seed(seed)
        ids = torch.tensor(prompts)
        config = GenerationConfig(max_new_tokens=length, eos_token_id=None, pad_token_id=0, **options, **self.config)
        with torch.inference_mode():
            made = self.target.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config, **self.assistance
            )
        return made[:, ids.shape[1] :].tolist()


def load(
    subject: str, way: dict[str, Any], models: dict[str, str], num_draft_tokens: int, dtype: str, threads: int
) -> tuple[Serving, str]:
    """See `exactness.subjects`."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    torch.manual_seed(0)  # of the drafters that are made here

    def model(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            models[name], dtype=getattr(torch, dtype), trust_remote_code=False
        ).eval()

    def drafting(assistant: Any) -> Any:
        assistant.generation_config.update(num_assistant_tokens=num_draft_tokens, **way["options"])
        return assistant

    target, method, assistance = model("target"), way["method"], {}
    if method == "assistant":
        assistance = {"assistant_model": drafting(model("draft"))}
    elif method == "assistant with another vocabulary":
        names = {"tokenizer": "target", "assistant_tokenizer": "other draft"}
        assistance = {
            key: AutoTokenizer.from_pretrained(models[name], trust_remote_code=False) for key, name in names.items()
        }
        assistance["assistant_model"] = drafting(model("other draft"))
        _translate(mended="mended" in way["setting"])
    elif method == "prompt lookup":
        assistance = {"prompt_lookup_num_tokens": num_draft_tokens}
    elif method == "early exit":
        assistance = {"assistant_early_exit": 1}
        drafting(target)
    elif method == "MTP":
        assistance = _mtp(target, num_draft_tokens)
    elif method == "DFlash":
        assistance = _dflash(target, num_draft_tokens)
    elif method == "single position":
        target, assistance = _single_position(target, model("draft"), num_draft_tokens)
    return Serving(target, assistance), transformers.__version__


def _translate(*, mended: bool) -> None:
    """Report the draft's logits in the order of ids, as transformers does, or in that in which the head was cut."""
    import torch
    from transformers.generation.candidate_generator import AssistantToTargetTranslator as Translator

    if not hasattr(Translator, "shipped"):
        Translator.shipped = Translator.get_target_logits

    def in_order(translator: Any, logits: Any) -> Any:
        places = translator._assistant_to_target_input_ids[translator.assistant_overlap_token_ids]
        all_logits = torch.full((*logits.shape[:-1], translator.target_vocab_size), -torch.inf)
        all_logits[..., places] = logits
        return all_logits

    Translator.get_target_logits = in_order if mended else Translator.shipped


def _mtp(target: Any, num_draft_tokens: int) -> dict[str, Any]:
    """Random layers of multi-token prediction for the target, which has none in its checkpoint."""
    from transformers.modeling_layers import MtpModel

    target.config.num_mtp_layers = num_draft_tokens
    drafter = MtpModel(target, num_draft_tokens).eval()
    for name, weight in drafter.named_parameters():
        if name.startswith("layers.") and weight.ndim == 2:
            weight.data.normal_(0, 0.2)
            if name.endswith(("eh_proj.weight", "o_proj.weight", "down_proj.weight")):
                weight.data[0] = 0  # the head tells special tokens by the first feature, which stays that of the token
            if name.endswith("eh_proj.weight"):
                weight.data[0, 0] = 5.0
    MtpModel.from_pretrained = lambda main_model, device_map=None: drafter
    return {"use_mtp": True}


def _dflash(target: Any, num_draft_tokens: int) -> dict[str, Any]:
    """A random drafter of one block for the target."""
    from transformers.models.muse_glimmer_assistant import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MuseGlimmerAssistantConfig(
        **sizes,
        num_key_value_heads=2,
        head_dim=32,
        target_layer_ids=[0, 1],
        block_size=num_draft_tokens + 1,
        mask_token_id=5,
        bos_token_id=6,
        eos_token_id=7,
        pad_token_id=None,
    )
    drafter = MuseGlimmerAssistantModel(config).eval().to(target.dtype)
    for name, weight in drafter.named_parameters():
        if weight.ndim == 2:
            weight.data.normal_(0, 0.2)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data[0] = 0
    return {"assistant_model": drafter, "speculation_type": "dflash"}


def _single_position(target: Any, draft: Any, num_draft_tokens: int) -> tuple[Any, dict[str, Any]]:
    """Stand-ins with the names of Gemma 4's models, which alone draft so: the draft reads the last token only."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM
    from transformers.modeling_outputs import ModelOutput

    class Gemma4StandIn(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs | {"output_hidden_states": True})
            return ModelOutput(**outputs, shared_kv_states={})

    class Gemma4AssistantStandIn(torch.nn.Module):
        config, device = draft.config, draft.device
        generation_config = GenerationConfig(num_assistant_tokens=num_draft_tokens)

        def forward(self, inputs_embeds: Any, **kwargs: Any) -> Any:
            token = torch.cdist(inputs_embeds[0, :, :64], target.get_input_embeddings().weight[None][0]).argmin(-1)
            found = draft(token[None], output_hidden_states=True)
            return ModelOutput(logits=found.logits, last_hidden_state=found.hidden_states[-1])

    target.__class__ = Gemma4StandIn
    return target, {"assistant_model": Gemma4AssistantStandIn()}
