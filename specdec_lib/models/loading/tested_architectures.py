"""How each architecture of transformers is read: what `tests/models/test_architectures.py` has seen in float32.

By model type. docs/models.md is made of it. What is not here is tried out when it is loaded, in float32 only: bfloat16
hides small differences.
"""

from __future__ import annotations

from typing import Any

from specdec_lib.models.loading.architectures import text_config

TABLE = {
    "eager": """
        afmoe apertus arcee aria_text axk1 beam bert bert-generation biogpt bitnet camembert cohere cohere2
        cohere2_moe cohere_compass_text cosmos3_omni ctrl cwm data2vec-text dbrx deepseek_v2 deepseek_v3
        diffllama dots1 electra ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo flint fuyu gemma gemma2
        gemma3 gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text git glm glm4
        glm46v glm4_moe glm4_moe_lite glm4v glm4v_moe glm_ocr gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_oss granite
        granite_docling granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense
        hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe kimi_k25 kolibri1 laguna llama
        llama4 llama4_text llava longcat_flash mellum mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text
        ministral ministral3 mistral mistral3 mixtral mllama modernbert-decoder moss_transcribe_diarize nanochat
        nemotron olmo olmo2 olmo3 olmoe opt paddleocr_vl persimmon phi phi3 phi4_multimodal phimoe qwen2
        qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_vl qwen3_vl_moe roberta roberta-prelayernorm
        roc_bert seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xlm-roberta xlm-roberta-xl youtu
    """,
    "row by row": """
        axk2 bailing_hybrid bamba bart big_bird bigbird_pegasus blenderbot blenderbot-small bloom codegen
        deepseek_v32 doge dots3_note_text falcon falcon_h1 glm_moe_dsa got_ocr2 gpt_neo gpt_neox_japanese gptj
        granitemoehybrid hy_v4 inkling2_text inkling_text kimi_linear lfm2 lfm2_moe lfm3 mamba2 marian mbart
        megatron-bert mistral_large4 mpt mvp nemotron_h olmo_hybrid pegasus plbart qwen3_5 qwen3_5_moe
        qwen3_5_moe_text qwen3_5_text qwen3_next rembert roformer trocr xglm zamba2 zaya
    """,
    "token by token": """
        falcon_mamba jamba mamba zamba
    """,
    "rereading": """
        minimax openai-gpt recurrent_gemma rwkv xlstm
    """,
}
READ = {name: types.split() for name, types in TABLE.items()}


def read_as(config: Any) -> str | None:
    """The name of the fastest engine that reads this architecture exactly; None if it has not been tested."""
    if getattr(config, "model_type", None) == "granitemoehybrid" and not {"mamba", "linear_attention"} & {
        *config.layer_types
    }:
        return "eager"  # Granite 4 without recurrent layers
    kinds = [getattr(each, "model_type", None) for each in (config, text_config(config))]
    return next((name for kind in kinds for name, types in READ.items() if kind in types), None)
