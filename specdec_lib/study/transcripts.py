"""`transcripts.json`: a generation or two to read, step by step, with the baseline's times for the same tokens."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import Any

import torch

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.decoding.decode import autoregressive_decode, speculative_decode
from specdec_lib.decoding.recording import Recording, transcript
from specdec_lib.decoding.transcript import Transcript
from specdec_lib.machine.files import write_atomically
from specdec_lib.methods import RULES, make_proposer
from specdec_lib.models.pair import Pair
from specdec_lib.study.prompt_file import Prompt
from specdec_lib.study.prompts import encode_prompts, load_prompts, random_prompts
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.workers import heartbeat

FILE = "transcripts.json"
MOST = 2  # transcripts
MAX_NEW_TOKENS, WARM_UP_TOKENS = 40, 4
TITLE_LENGTH = 160


def measure_transcripts(runner: BlockRunner) -> None:
    """Write the transcripts of a run's pair; none of a target that several processes share.

    What fails is printed, and the file is left out: the rows of the sweep stand without it.
    """
    if runner.team.size > 1:
        return
    heartbeat.write_heartbeat(runner.folder, heartbeat.MACHINE, runner.run_id)
    try:
        found = example_transcripts(runner.pair, runner.params)
    except Exception as error:  # noqa: BLE001 - out of memory or anything else
        (runner.folder / FILE).unlink(missing_ok=True)
        print(f"no transcripts: {type(error).__name__}: {error}", flush=True)
        return
    facts = {"evidence": "measured", "transcripts": [asdict(each) for each in found]}
    write_atomically(runner.folder / FILE, json.dumps(facts) + "\n")


def prompt_ids(pair: Pair, text: str, seed: int = 0) -> torch.Tensor:
    """What the target reads when a user says `text`, int64 `[T]`; random ids for a toy, which has no words."""
    if pair.tokenizer is None:
        return random_prompts(pair.target.vocab_size, 1, 8, torch.Generator().manual_seed(seed))[0]
    return encode_prompts([Prompt("typed", "typed", text)], pair.tokenizer, 0)[0]


def example_transcripts(pair: Pair, params: StudyParams) -> list[Transcript]:
    """Transcripts of the first prompts of different categories, at the highest temperature and the headline gamma.

    Each is a single call of the first method, stop tokens on: an example, no measurement to average.
    """
    first = {prompt.category: prompt for prompt in reversed(load_prompts(params.prompt_set, params.turns))}
    prompts = sorted(first.values(), key=lambda prompt: prompt.id)[:MOST]
    if pair.tokenizer is None:
        prompts = [Prompt("random", "toy", "random tokens")]
    _transcript(pair, params, prompts[0], WARM_UP_TOKENS)
    return [_transcript(pair, params, prompt, MAX_NEW_TOKENS) for prompt in prompts]


def _transcript(pair: Pair, params: StudyParams, prompt: Prompt, max_new_tokens: int) -> Transcript:
    prompts = [prompt_ids(pair, prompt.text, params.seed)]
    recording = Recording(RULES[params.verification[0]].load())
    given: dict[str, Any] = {"sampling": SamplingConfig(max(params.temperatures), params.top_k, params.top_p)}
    result = speculative_decode(
        pair.target,
        make_proposer(params.methods[0], pair),
        prompts,
        max_new_tokens=max_new_tokens,
        num_draft_tokens=params.headline_num_draft_tokens,
        generator=torch.Generator().manual_seed(params.seed),
        stop_token_ids=pair.stop_token_ids,
        verification=recording,
        draft_length=params.draft_length[0],
        **given,
    )
    given |= {"max_new_tokens": len(result.tokens[0]), "generator": torch.Generator().manual_seed(params.seed)}
    baseline = autoregressive_decode(pair.target, prompts, **given)
    title = f"{prompt.category}: {textwrap.shorten(prompt.text, TITLE_LENGTH, placeholder='…')}"
    return transcript(result, pair.tokenizer, recording, baseline, title=title)
