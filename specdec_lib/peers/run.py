"""One interleaved run of our engine next to others: same weights, same prompts, same counting of emitted tokens."""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from uuid import uuid4

import pandas as pd
import torch
import transformers
from tqdm import tqdm

from specdec_lib.config import BENCHMARK_VERSION, INT8, SamplingConfig, StudyParams
from specdec_lib.decoding.checks import check_context
from specdec_lib.machine.environment import check_device, device_name
from specdec_lib.models.pair import Pair, load_study_pair
from specdec_lib.peers import ways as peer_ways
from specdec_lib.peers.installed import installed_ways
from specdec_lib.peers.rows import FILE, read_peers
from specdec_lib.peers.ways import LOOKUP_TOKENS, Way
from specdec_lib.study.prompt_file import Prompt
from specdec_lib.study.prompts import encode_prompts, load_prompts
from specdec_lib.study.rows.columns import latency_columns
from specdec_lib.study.rows.schema import Row

WARM_UP_TOKENS = 8
SETTLE_S = 0.05  # before each call, so that another engine's threads have gone to sleep
UNDEFINED = {"status": "ok", "error": None, "new_tokens": None, "tokens": None, "tpot_ms": None}  # until it decodes
Prompts = Sequence[tuple[Prompt, torch.Tensor]]


def run_peers(
    params: StudyParams,
    folder: Path,
    *,
    num_prompts: int | None,
    new_tokens: int,
    repetitions: int,
) -> pd.DataFrame:
    """Time every engine on every prompt at every temperature of the study, and write `folder/peer_rows.parquet`.

    Batch 1, a fixed output length, stop tokens off. All engines are loaded and warmed up before the first is timed, and
    none runs while another is timed. On each prompt they follow one another, in a new order at every repetition. The
    file is written anew after every prompt, so a run that is ended leaves what it has.

    Raises:
        ValueError: the study cannot run here: wrong device or dtype, a pair that others cannot load, or prompts that do
            not fit.
    """
    check_device(params)
    if params.dtype == INT8:
        raise ValueError("dtype is int8: other engines do not have these weights, give --set dtype=bfloat16")
    pair = load_study_pair(params)
    if pair.tokenizer is None:
        raise ValueError(f"other engines cannot load the pair {pair.name}: choose one with checkpoints")
    plain = peer_ways.same_draft_pair(pair)
    chosen_prompts = load_prompts(params.prompt_set, params.turns)[:num_prompts]
    prompts = list(zip(chosen_prompts, encode_prompts(chosen_prompts, pair.tokenizer, 0), strict=True))
    longest = max(len(ids) for _, ids in prompts)
    for model in (pair.target, pair.draft, plain.draft):
        check_context(model, longest, new_tokens)
    gammas = (params.headline_num_draft_tokens,)
    transformers.utils.logging.disable_progress_bar()
    with ExitStack() as stack:
        exported = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = peer_ways.our_ways(pair, plain, params, gammas)
        draft = peer_ways.draft_checkpoint(plain, exported)
        ways += peer_ways.transformers_ways(plain, peer_ways.load_draft(plain, draft), gammas)
        if params.device == "cpu":
            target = str(plain.target.model.name_or_path)  # the very files, whatever a hub has by now
            context = longest + new_tokens + max(*gammas, LOOKUP_TOKENS) + 1
            ways += installed_ways(plain, target, draft, gammas, context, stack)
        for rows in _Run(params, pair, ways, prompts, new_tokens).rows(repetitions):
            _write(rows, folder)
    return read_peers(folder)


class _Run:
    """A comparison in progress."""

    def __init__(self, params: StudyParams, pair: Pair, ways: list[Way], prompts: Prompts, new_tokens: int):
        self.params, self.ways, self.prompts, self.new_tokens = params, ways, prompts, new_tokens
        self.failed: set[tuple[object, ...]] = set()  # ways, each at a temperature
        self.facts: Row = {
            "run_id": uuid4().hex[:12],
            "benchmark_version": BENCHMARK_VERSION,
            "evidence": "measured",
            "gpu": params.gpu,
            "device_name": device_name(params.device),
            "target_id": pair.target_id,
            "verification": params.verification[0],
            "dtype": params.dtype,
            "threads": torch.get_num_threads(),
            "batch_size": 1,
            "prompt_set": Path(params.prompt_set).name,
            "max_new_tokens": new_tokens,
        }

    def rows(self, repetitions: int) -> Iterator[list[Row]]:
        """All rows so far, after every prompt."""
        rows: list[Row] = []
        samplings = [SamplingConfig(t, self.params.top_k, self.params.top_p) for t in self.params.temperatures]
        for sampling in samplings:
            for way in self._able(sampling):
                warm = self._row(way, sampling, 0, *self.prompts[0], min(WARM_UP_TOKENS, self.new_tokens))
                rows += [warm] * (warm["status"] == "failed")
        for prompt, ids in tqdm(self.prompts, unit="prompt", disable=not sys.stderr.isatty()):
            for sampling, repetition in product(samplings, range(repetitions)):
                order = self._able(sampling)
                random.Random(f"{self.params.seed} {prompt.id} {sampling.temperature} {repetition}").shuffle(order)
                gc.collect()
                rows += [self._row(way, sampling, repetition, prompt, ids, self.new_tokens) for way in order]
            yield rows

    def _able(self, sampling: SamplingConfig) -> list[Way]:
        """The ways that can decode at this temperature."""
        temperature = sampling.temperature
        able = [way for way in self.ways if temperature == 0 or not way.greedy_only]
        return [way for way in able if (*way.facts.values(), temperature) not in self.failed]

    def _row(
        self, way: Way, sampling: SamplingConfig, repetition: int, prompt: Prompt, ids: torch.Tensor, new_tokens: int
    ) -> Row:
        """One call. A failure is a row too, and the last of its way at this temperature."""
        seed = random.Random(f"{self.params.seed} {prompt.id} {repetition}").randrange(2**31)
        row = self.facts | way.facts | vars(sampling) | UNDEFINED
        row |= {"prompt_id": prompt.id, "category": prompt.category, "prompt_tokens": len(ids)}
        row |= {"repetition": repetition, "seed": seed}
        try:
            time.sleep(SETTLE_S)
            result = way.decode(ids, new_tokens, sampling, seed)
            if result.new_tokens != new_tokens:
                raise RuntimeError(f"emitted {result.new_tokens} of {new_tokens} tokens")
            row |= latency_columns(result) | {"new_tokens": new_tokens, "tokens": result.tokens[0].tolist()}
            row["acceptance_rate"] = result.acceptance_rate
            row["tpot_ms"] = row["tpot_ms"] or None  # undefined too if all tokens arrived at once
        except Exception as error:  # noqa: BLE001 - the others go on without it
            reason = (str(error).strip().splitlines() or [""])[0]
            row |= {"status": "failed", "error": f"{type(error).__name__}: {reason}"}
            self.failed.add((*way.facts.values(), sampling.temperature))
            print(f"failed: {way.engine} {way.method} gamma {way.num_draft_tokens}: {row['error']}", flush=True)
        return row


def _write(rows: list[Row], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.tmp"
    pd.DataFrame(rows).convert_dtypes().to_parquet(temporary)
    temporary.replace(folder / FILE)
