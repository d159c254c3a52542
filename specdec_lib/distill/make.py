"""From nothing to the shipped drafts: the target writes a corpus, and both drafts are trained on it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from specdec_lib.distill.corpus import write_corpus
from specdec_lib.distill.students import Corpus, HeadStudent, PlainStudent, layers_of_target
from specdec_lib.distill.train import Recipe, held_out_acceptance, start_from_regression, train
from specdec_lib.models.runner import LanguageModel

FEATURE_LAYERS = (9, 19)  # of the target, which the head reads next to the last state
KEPT_LAYERS = (0, -1)  # of the target, with which the plain draft begins
NUM_SCORED = 8192  # tokens that a draft scores
HEAD, PLAIN = "smollm2-135m-eagle", "smollm2-135m-2layer"
RECIPES = {  # one after another, each with its own warm-up
    HEAD: (
        Recipe(num_batches=600, steps=3, unroll_from=0.4),
        Recipe(num_batches=1500, steps=2, unroll_from=0.35),
        Recipe(num_batches=9500, steps=2, unroll_from=0.45, learning_rate=8e-4),
        Recipe(num_batches=8600, steps=2, unroll_from=0.45, learning_rate=8e-4),
    ),
    PLAIN: (Recipe(num_batches=530),),
}

log = logging.getLogger(__name__)


def make_drafts(workdir: Path, target: LanguageModel, tokenizer: PreTrainedTokenizerBase, num_shards: int = 39) -> None:
    """Write the corpus and a folder for each draft into `workdir`.

    Shards and drafts that are already there are kept. The target is in bfloat16 on the CPU and gives the states of
    `FEATURE_LAYERS`.
    """
    write_corpus(workdir / "corpus", target, tokenizer, num_shards)
    turn_start, assistant, *_ = tokenizer.encode("<|im_start|>assistant", add_special_tokens=False)
    corpus = Corpus(workdir / "corpus", turn_start, assistant)
    ranked = corpus.rank_tokens(target.model.get_input_embeddings().weight)
    for name in RECIPES:
        if not (workdir / name / "report.json").exists():
            train_draft(name, workdir / name, target, corpus, ranked[:NUM_SCORED].sort().values)


def train_draft(name: str, folder: Path, target: LanguageModel, corpus: Corpus, scored_ids: torch.Tensor) -> None:
    """Train a draft and write its weights and `report.json` (recipes, and acceptance on held-out text) to `folder`."""
    student = new_student(name, target, corpus, scored_ids)
    num_parameters = sum(weight.numel() for weight in student.draft.parameters())
    log.info("%s: %d parameters of its own", name, num_parameters)
    stages = [{"recipe": asdict(recipe), **train(student, corpus, recipe)} for recipe in RECIPES[name]]
    student.draft.save(folder)
    report = {
        "parameters": num_parameters,
        "training_tokens_chosen_by_target": corpus.num_tokens,
        "stages": stages,
        "held_out_acceptance": held_out_acceptance(student, corpus),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def new_student(
    name: str, target: LanguageModel, corpus: Corpus, scored_ids: torch.Tensor
) -> HeadStudent | PlainStudent:
    """The draft as its training begins."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the only way to seed what a module's constructor draws
        if name == PLAIN:
            return layers_of_target(target.model, KEPT_LAYERS, scored_ids)
        student = HeadStudent(target.model, FEATURE_LAYERS, scored_ids)
    start_from_regression(student, next(corpus.batches(256, torch.Generator().manual_seed(0))))
    return student
