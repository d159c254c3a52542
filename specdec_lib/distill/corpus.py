"""Training text for a draft: conversations that the target itself writes, with the hidden states it had.

Each row of a batch is one conversation of `CONVERSATION_TOKENS` tokens. Tokens of the chat template are forced; the
target samples all others, also the user's turns, so no data set is needed. A third of the rows opens with a task about
docstrings and functions of Python's standard library, another third with one about an answer from an earlier shard. So
summaries, lists and code edits occur. A draft head learns from the hidden states, and the target's distributions can be
computed from them again.
"""

from __future__ import annotations

import ast
import logging
import random
import re
import sysconfig
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from specdec_lib.decoding.sampling import invert
from specdec_lib.models.runner import LanguageModel

CONVERSATION_TOKENS = 448
BATCH_SIZE = 256
MAX_TURN_TOKENS = 220  # a turn that does not end by itself is ended here
USER_TEMPERATURE = 1.0
ANSWER_TEMPERATURES = (0.3, 1.0, 0.7, 1.0)  # row by row
TEXT_CHARACTERS = (200, 900)  # of a text that a task is about
PROSE_TASKS = (
    "Summarize the following text in two sentences.\n\n{text}",
    "Rewrite this text so that a beginner understands it:\n\n{text}",
    "List the key points of this text.\n\n{text}",
    "Answer in one paragraph: what is this text about?\n\n{text}",
    "Extract every name, place and number from the following text and write them as lists.\n\n{text}",
    "Turn this text into a short, friendly email.\n\n{text}",
    "Translate this text into French.\n\n{text}",
    "{text}",
)
CODE_TASKS = (
    "Explain what this Python function does.\n\n```python\n{text}\n```",
    "Add a docstring and comments to this function. Return the whole function.\n\n```python\n{text}\n```",
    "Rename the variables in this code so that they are clearer. Return all of the code.\n\n```python\n{text}\n```",
    "Fix any bug in this code and return the corrected code.\n\n```python\n{text}\n```",
)

log = logging.getLogger(__name__)


def standard_library_text() -> tuple[list[str], list[str]]:
    """Docstrings (prose) and function sources (code) of 200 to 900 characters from Python's standard library."""
    prose: list[str] = []
    code: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="ignore")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                prose.append(ast.get_docstring(node) or "")
            if isinstance(node, ast.FunctionDef):
                code.append(ast.get_source_segment(source, node) or "")
    return _of_fitting_length(prose)[:4000], _of_fitting_length(code)[:4000]


def answers(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the target answered in a shard where it asked itself, at the lower temperatures."""
    with safe_open(path, "pt") as shard:
        conversations = tokenizer.batch_decode(shard.get_tensor("tokens")[2::6])
    turns = [re.findall(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", text, re.DOTALL) for text in conversations]
    return _of_fitting_length([answer for answers in turns for answer in answers])


def _of_fitting_length(texts: list[str]) -> list[str]:
    shortest, longest = TEXT_CHARACTERS
    return [text for text in texts if shortest <= len(text) <= longest]


class _Conversations:
    """The next token of each row: forced where the template dictates it, sampled otherwise."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prose: list[str], code: list[str], own: list[str], rng: random.Random
    ):
        self.tokenizer, self.rng = tokenizer, rng
        self.prose, self.code, self.own = prose, code, own
        (self.end_of_turn,) = tokenizer.encode("<|im_end|>", add_special_tokens=False)
        opening = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
        self.opening = opening[: opening.rindex("<|im_end|>")]
        self.to_user = tokenizer.encode("\n<|im_start|>user\n", add_special_tokens=False)
        self.to_answer = tokenizer.encode("\n<|im_start|>assistant\n", add_special_tokens=False)

    def start(self) -> None:
        self.forced: list[list[int]] = []
        self.answering = [False] * BATCH_SIZE
        self.turn_tokens = [0] * BATCH_SIZE
        for row in range(BATCH_SIZE):
            task = self._task(row)
            tokens = self.tokenizer.encode(self.opening + task, add_special_tokens=False)
            tokens = tokens[: CONVERSATION_TOKENS // 2 + 32]
            if task:
                tokens += [self.end_of_turn, *self.to_answer]
                self.answering[row] = True
            self.forced.append(tokens[::-1])

    def _task(self, row: int) -> str:
        """What the user asks first, or nothing where the target is to write that too."""
        if row % 3 == 0:
            tasks, texts = self.rng.choice(((PROSE_TASKS, self.prose), (CODE_TASKS, self.code)))
        elif row % 3 == 1 and self.own:
            tasks, texts = PROSE_TASKS, self.own
        else:
            return ""
        return self.rng.choice(tasks).format(text=self.rng.choice(texts))

    def temperatures(self) -> torch.Tensor:  # [B, 1]
        answer = [ANSWER_TEMPERATURES[row % len(ANSWER_TEMPERATURES)] for row in range(BATCH_SIZE)]
        return torch.tensor([[t if a else USER_TEMPERATURE] for t, a in zip(answer, self.answering, strict=True)])

    def choose(self, sampled: list[int]) -> tuple[list[int], list[bool]]:
        """The next token of every row, and whether the target chose it."""
        tokens, free = [], []
        for row, token in enumerate(sampled):
            queue = self.forced[row]
            free.append(not queue)
            if queue:
                token = queue.pop()
            else:
                self.turn_tokens[row] += 1
                if self.turn_tokens[row] > MAX_TURN_TOKENS:
                    token, free[-1] = self.end_of_turn, False
                if token == self.end_of_turn:
                    self.forced[row] = (self.to_user if self.answering[row] else self.to_answer)[::-1]
                    self.answering[row] = not self.answering[row]
                    self.turn_tokens[row] = 0
            tokens.append(token)
        return tokens, free


@torch.inference_mode()
def write_shard(path: Path, target: LanguageModel, talk: _Conversations, generator: torch.Generator) -> int:
    """Sample one batch of conversations into a safetensors shard; return how many tokens the target chose itself.

    The shard holds `tokens` `[B, T]` int32, `sampled` `[B, T]` bool (chosen by the target, not forced) and `features`
    `[B, T, F]` bfloat16, where row `t` is what the target computed from token `t`.
    """
    talk.start()
    cache = target.new_cache(BATCH_SIZE, CONVERSATION_TOKENS)
    tokens = torch.zeros(BATCH_SIZE, CONVERSATION_TOKENS, dtype=torch.int32)
    sampled = torch.zeros(BATCH_SIZE, CONVERSATION_TOKENS, dtype=torch.bool)
    features: torch.Tensor | None = None
    proposal = [0] * BATCH_SIZE
    for t in range(CONVERSATION_TOKENS):
        step_tokens, free = talk.choose(proposal)
        tokens[:, t], sampled[:, t] = torch.tensor(step_tokens), torch.tensor(free)
        step = target.forward(tokens[:, t : t + 1].long(), cache)
        cache.commit(1, at_most=1)
        if features is None:
            features = torch.zeros(BATCH_SIZE, CONVERSATION_TOKENS, step.features.shape[-1], dtype=torch.bfloat16)
        features[:, t] = step.features[:, 0]
        scores, temperatures = target.logits(step.hidden[:, 0]), talk.temperatures()
        proposal = []
        for rows in torch.arange(BATCH_SIZE).split(16):  # larger buffers leave the allocator's cache: page faults
            probs = torch.softmax(scores[rows].float().div_(temperatures[rows]), dim=-1)
            numbers = torch.rand(probs.shape[:-1], dtype=torch.float64, generator=generator)
            proposal += invert(probs, numbers).tolist()
    assert features is not None
    temporary = path.with_suffix(".tmp")
    save_file({"tokens": tokens, "sampled": sampled, "features": features}, temporary)
    temporary.rename(path)
    return int(sampled.sum())


def write_corpus(folder: Path, target: LanguageModel, tokenizer: PreTrainedTokenizerBase, num_shards: int) -> None:
    """Write shards `0000.safetensors` ... into `folder`; those already there are kept. The seed is the shard number."""
    folder.mkdir(parents=True, exist_ok=True)
    prose, code = standard_library_text()
    own: list[str] = []
    for shard in range(num_shards):
        path = folder / f"{shard:04d}.safetensors"
        if not path.exists():
            start = time.monotonic()
            talk = _Conversations(tokenizer, prose, code, own, random.Random(shard))
            chosen = write_shard(path, target, talk, torch.Generator().manual_seed(shard))
            rate = BATCH_SIZE * CONVERSATION_TOKENS / (time.monotonic() - start)
            log.info("shard %d of %d: the target chose %d tokens, %.0f tokens/s", shard + 1, num_shards, chosen, rate)
        own += answers(path, tokenizer)
