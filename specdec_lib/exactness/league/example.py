"""The smallest example of a bias: one line of the league again, with as few samples as show it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from specdec_lib.config import SamplingConfig
from specdec_lib.exactness.joint_law import pairs_at
from specdec_lib.exactness.league.law import laws, laws_by_logits
from specdec_lib.exactness.league.measure import LOAD_S, log_of, question
from specdec_lib.exactness.league.subject import Line, known_subjects
from specdec_lib.exactness.league.tiny_models import LETTERS, PROMPTS, tiny_models
from specdec_lib.machine.own_environment import ServedProcess

PATIENCE_S = 3600.0
Cell = tuple[float, float, str]  # z, share seen less chance, name


def show_bias(
    subject: str,
    way: str,
    num_draft_tokens: int,
    sampling: tuple[float, int, float],
    *,
    samples: int,
    position: int,
) -> list[str]:
    """Draw, and print the pairs of tokens whose share is furthest from the target's, in standard deviations.

    Args:
        sampling: temperature, top-k (0 off) and top-p.
        samples: of each prompt.
        position: of the pair's first token, from 0.

    Returns:
        the lines printed. ValueError if there is no such subject or way; RuntimeError if it cannot be loaded.
    """
    found = [(each, one) for each in known_subjects() for one in each.ways if (each.name, one.name) == (subject, way)]
    if not found:
        raise ValueError(f"there is no subject {subject!r} with a way {way!r}: see docs/league.md")
    engine, chosen = found[0]
    line = Line(engine, chosen, num_draft_tokens, SamplingConfig(*sampling))
    settings: dict[str, Any] = {"subject": subject, "way": asdict(chosen), "models": tiny_models()[engine.reads]}
    settings |= {"num_draft_tokens": num_draft_tokens, "dtype": engine.dtypes[0], "threads": 1}
    where = log_of(f"example {line.name}")
    with ServedProcess(engine.python, engine.file, settings, where, load_s=LOAD_S, environ=engine.environ) as process:
        drawn = process.ask(question(line, samples, 0), PATIENCE_S)["value"]
        known = laws("target", line.sampling, line.length)
        if chosen.own_model:
            known = laws_by_logits(
                lambda texts: process.ask({"call": "logits", "texts": texts}, PATIENCE_S)["value"],
                line.sampling,
                line.length,
            )
    cells: list[Cell] = []
    for prompt, (texts, law) in enumerate(zip(drawn, known, strict=True)):
        seen, chances = Counter(tuple(text[position : position + 2]) for text in texts), pairs_at(law, position)
        for pair in {*seen, *chances}:
            share, chance = seen[pair] / samples, chances.get(pair, 0.0)
            z = (share - chance) / max(math.sqrt(chance * (1 - chance) / samples), 1e-12)
            cells.append(
                (z, share, f"prompt {prompt}, {_spelt(PROMPTS[prompt])} then {_spelt(pair)}: {chance:.3f} due")
            )
    cells.sort(key=lambda cell: -abs(cell[0]))
    lines = [f"{name}, {share:.3f} seen ({z:+.1f} standard deviations)" for z, share, name in cells[:5]]
    print("\n".join([line.name, *lines]))
    return lines


def _spelt(tokens: tuple[int, ...]) -> str:
    return "".join(LETTERS[token] if 0 <= token < len(LETTERS) else "?" for token in tokens)
