"""What is predicted of every preset pair on one GPU: whether it fits, the speedup, and which gamma to set."""

from __future__ import annotations

import pandas as pd

from specdec_lib.analysis.comparison import memory_plan
from specdec_lib.analysis.cost_model.gpus import ACCEPTANCE, predict
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import load_gpus, load_models, price
from specdec_lib.models.loading.checkpoints import config_of
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.models.loading.tested_architectures import read_as

TOKENS = 4096  # of a row, prompt and output, for which the largest batch is given


def preset_table(study: StudyParams) -> pd.DataFrame:
    """One line for each preset on the product of a study's price, at its first prompt and output length; predicted.

    Columns: pair, weights (the form of the target's), read (how, as in docs/models.md); `largest_batch` of `TOKENS`
    tokens a row, 0 where not even one row fits, null where no plan was made; and at batch 1 `num_draft_tokens`, the
    best for an acceptance in the middle of `ACCEPTANCE`, with `speedup` and its band. No speed is predicted where steps
    are not captured, or where the GPU cannot compute in the target's form.
    """
    cost = price(study.price)
    gpu, plan = load_gpus()[cost.gpu], memory_plan()
    fits = plan[plan["tokens"] == TOKENS].set_index("pair")[f"fits_{gpu.memory_gb:g}"]
    lines = []
    for pair, (target, _) in PRESETS.items():
        form = load_models()[target].quantised
        read = {read_as(config_of(name)) or "" for name in PRESETS[pair]}
        line = {"pair": pair, "weights": form or study.dtype, "read": max(read, key=len)}
        computes = form != "fp8" or gpu.fp8_tflops is not None
        if computes:
            line["largest_batch"] = fits.get(pair)
        if computes and read == {"eager"}:
            changes = {"pair": pair, "batch_sizes": [1], "prompt_tokens": study.prompt_tokens[:1]}
            settings = predict(study.model_copy(update=changes), cost).dropna(subset="num_draft_tokens")
            best = settings.sort_values("speedup", ascending=False).iloc[0]
            line |= best[["num_draft_tokens", "speedup", "speedup_low", "speedup_high"]].to_dict()
        lines.append(line)
    columns = ["pair", "weights", "read", "largest_batch", "num_draft_tokens"]
    table = pd.DataFrame(lines).reindex(columns=[*columns, "speedup", "speedup_low", "speedup_high"])
    return table.assign(evidence="predicted", acceptance_rate=ACCEPTANCE.value)


def preset_lines(table: pd.DataFrame, product: str) -> list[str]:
    """The same as text, under a heading that says what is assumed."""
    rates = f"acceptance {ACCEPTANCE.value:g} ({ACCEPTANCE.low:g} to {ACCEPTANCE.high:g})"
    said = [f"predicted for one {product}, batch 1, {rates}; largest batch at {TOKENS:,} tokens a row:"]
    said.append(f"{'pair':<18} {'weights':<9} {'largest batch':>13} {'gamma':>6} {'speedup':>8}  band")
    for line in table.itertuples():
        known = pd.notna(line.largest_batch)
        batch = "no plan" if not known else f"{line.largest_batch:.0f}" if line.largest_batch else "does not fit"
        why = f"the GPU does not compute in {line.weights}" if line.read == "eager" else f"read {line.read}"
        speed = f"{'-':>6} {'-':>8}  not predicted: {why}"
        if pd.notna(line.speedup):
            gamma = "off" if line.speedup <= 1 else f"{line.num_draft_tokens:.0f}"
            speed = f"{gamma:>6} {line.speedup:>8.2f}  {line.speedup_low:.2f} to {line.speedup_high:.2f}"
        said.append(f"{line.pair:<18} {line.weights:<9} {batch:>13} {speed}")
    return said
