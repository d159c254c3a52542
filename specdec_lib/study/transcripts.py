"""One generation to look at for each kind of prompt: recorded, and decoded without speculation beside it."""

from __future__ import annotations

import torch

from specdec_lib.config import SamplingConfig, StudyParams
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import make_proposer
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.transcript import Recording, transcript
from specdec_lib.models.pair import Pair, load_study_pair
from specdec_lib.report.transcript_html import Transcript
from specdec_lib.study.prompts import Prompt, encode_prompts, load_prompts, random_prompts

MAX_NEW_TOKENS = 40
WARM_UP_TOKENS = 4


def prompt_ids(pair: Pair, text: str, seed: int = 0) -> torch.Tensor:
    """What the target reads when a user says `text`; a few random ids for a toy, which has no words."""
    if pair.tokenizer is None:
        return random_prompts(pair.target.vocab_size, 1, 8, torch.Generator().manual_seed(seed))[0]
    return encode_prompts([Prompt("typed", "typed", text)], pair.tokenizer, 0)[0]


def study_transcripts(params: StudyParams) -> list[Transcript]:
    """The `example_transcripts` of a study's pair, loaded in this process; none of a target that several share."""
    return example_transcripts(load_study_pair(params), params) if params.tensor_parallel == 1 else []


def example_transcripts(pair: Pair, params: StudyParams) -> list[Transcript]:
    """A transcript of the first prompt of each category, at the highest temperature and the headline gamma.

    Each is a single call of the first method, stop tokens on, to be looked at and not averaged.
    """
    first = {prompt.category: prompt for prompt in reversed(load_prompts(params.prompt_set))}
    prompts = sorted(first.values(), key=lambda prompt: prompt.id)
    if pair.tokenizer is None:
        prompts = [Prompt("random", "toy", "random tokens")]
    _transcript(pair, params, prompts[0], WARM_UP_TOKENS)
    return [_transcript(pair, params, prompt, MAX_NEW_TOKENS) for prompt in prompts]


def _transcript(pair: Pair, params: StudyParams, prompt: Prompt, max_new_tokens: int) -> Transcript:
    method, temperature = params.methods[0], max(params.temperatures)
    sampling = SamplingConfig(temperature, params.top_k, params.top_p)
    prompts = [prompt_ids(pair, prompt.text, params.seed).to(pair.target.device)]
    stops, recording = pair.stop_token_ids, Recording()
    generators = [torch.Generator(pair.target.device).manual_seed(params.seed) for _ in range(2)]
    result = speculative_decode(
        pair.target,
        make_proposer(method, pair),
        prompts,
        max_new_tokens=max_new_tokens,
        num_draft_tokens=params.headline_num_draft_tokens,
        sampling=sampling,
        generator=generators[0],
        stop_token_ids=stops,
        verification=recording,
    )
    baseline = autoregressive_decode(
        pair.target,
        prompts,
        max_new_tokens=len(result.tokens[0]),
        sampling=sampling,
        generator=generators[1],
    )
    said = " ".join(prompt.text.split())
    title = f"{prompt.category}: {said if len(said) <= 160 else said[:159] + '…'}"
    return transcript(result, pair.tokenizer, recording, baseline, title=title)
