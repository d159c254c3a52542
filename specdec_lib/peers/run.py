"""One interleaved run of our engine beside others: same weights, same prompts, same counting of emitted tokens."""

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
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from specdec_lib.config import BENCHMARK_VERSION, SamplingConfig, StudyParams
from specdec_lib.decoding.state import check_context
from specdec_lib.machine.environment import check_device, device_name
from specdec_lib.models.embedded import embedded_target
from specdec_lib.models.pair import EMBEDDED_DRAFTS, Pair, load_study_pair
from specdec_lib.peers.processes import installed_ways
from specdec_lib.peers.ways import (
    Way,
    draft_checkpoint,
    load_draft,
    lookup_gammas,
    our_ways,
    same_draft_pair,
    transformers_ways,
)
from specdec_lib.study.schema import Row
from specdec_lib.study.prompts import Prompt, encode_prompts, load_prompts, random_prompts
from specdec_lib.study.timing import latency_columns

FILE = "peer_rows.parquet"
WARM_UP_TOKENS = 8
SETTLE_S = 0.05  # before each call, so that another engine's threads have gone to sleep
SCHEMA = pa.schema(
    [("run_id", pa.string()), ("benchmark_version", pa.int64())]
    + [(name, pa.string()) for name in ("status", "error", "evidence", "gpu", "device_name", "engine")]
    + [(name, pa.string()) for name in ("engine_version", "method", "pair", "target_id", "draft_id")]
    + [("num_draft_tokens", pa.int64()), ("temperature", pa.float64()), ("top_k", pa.int64()), ("top_p", pa.float64())]
    + [("dtype", pa.string()), ("threads", pa.int64()), ("batch_size", pa.int64()), ("prompt_set", pa.string())]
    + [("prompt_id", pa.string()), ("category", pa.string()), ("prompt_tokens", pa.int64())]
    + [(name, pa.int64()) for name in ("max_new_tokens", "repetition", "seed", "new_tokens")]
    + [("tokens", pa.list_(pa.int64()))]
    + [(name, pa.float64()) for name in ("ttft_ms", "tpot_ms", "tokens_per_second", "acceptance_rate")]
)
Prompts = Sequence[tuple[Prompt, torch.Tensor]]


def run_peers(
    params: StudyParams,
    folder: Path,
    *,
    num_prompts: int | None,
    new_tokens: int,
    repetitions: int,
    gammas: Sequence[int] = (),
) -> pd.DataFrame:
    """Time every engine on every prompt at every temperature of the study, and write `folder/peer_rows.parquet`.

    Batch 1, a fixed output length, stop tokens off. All engines are loaded before the first is timed, each is warmed
    up, and none runs while another is timed. On each prompt they follow one another in a new order at every repetition.
    The file is written anew after every prompt, in place of an earlier run's: a run that is ended leaves what it has.

    Args:
        num_prompts: how many prompts of the study's prompt set; None takes all.
        gammas: numbers of draft tokens; none named takes the study's headline.

    Raises:
        ValueError: the study cannot run here: wrong device, or prompts that do not fit the models.
    """
    check_device(params)
    pair = load_study_pair(params)
    plain = same_draft_pair(pair)
    prompts = _prompts(params, pair, num_prompts)
    for model in (pair.target, pair.draft, plain.draft):
        check_context(model, max(len(ids) for _, ids in prompts), new_tokens)
    chosen = tuple(gammas) or (params.headline_num_draft_tokens,)
    with ExitStack() as stack:
        exported = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = our_ways(pair, plain, chosen)
        draft = draft_checkpoint(plain, exported)
        ways += transformers_ways(plain, load_draft(plain, draft), chosen)
        if params.device == "cpu":
            target = str(embedded_target()) if plain.name in EMBEDDED_DRAFTS else plain.target_id
            context = max(len(ids) for _, ids in prompts) + new_tokens + max(lookup_gammas(chosen)) + 1
            ways += installed_ways(plain, target, draft, chosen, context, stack)
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
            "dtype": params.dtype,
            "threads": torch.get_num_threads(),
            "batch_size": 1,
            "prompt_set": params.prompt_set,
            "max_new_tokens": new_tokens,
            "top_k": params.top_k,
            "top_p": params.top_p,
        }

    def rows(self, repetitions: int) -> Iterator[list[Row]]:
        """All rows so far, after every prompt.

        For each prompt and temperature the ways stand side by side, in a new order each time.
        """
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
        temperature = sampling.temperature
        able = [way for way in self.ways if temperature == 0 or not way.greedy_only]
        return [way for way in able if (*way.key, temperature) not in self.failed]

    def _row(
        self, way: Way, sampling: SamplingConfig, repetition: int, prompt: Prompt, ids: torch.Tensor, new_tokens: int
    ) -> Row:
        """One call; a failure is a row too, and the last of its way at this temperature."""
        seed = random.Random(f"{self.params.seed} {prompt.id} {repetition}").randrange(2**31)
        row = self.facts | {
            "status": "ok",
            "error": None,
            "engine": way.engine,
            "engine_version": way.engine_version,
            "method": way.method,
            "pair": way.pair,
            "draft_id": way.draft_id,
            "num_draft_tokens": way.num_draft_tokens,
            "temperature": sampling.temperature,
            "prompt_id": prompt.id,
            "category": prompt.category,
            "prompt_tokens": len(ids),
            "repetition": repetition,
            "seed": seed,
        }
        try:
            time.sleep(SETTLE_S)
            result = way.decode(ids, new_tokens, sampling, seed)
            if result.new_tokens != new_tokens:
                raise RuntimeError(f"emitted {result.new_tokens} of {new_tokens} tokens")
            row |= {"new_tokens": result.new_tokens, "tokens": result.tokens[0].tolist()}
            row |= latency_columns(result)
            row["acceptance_rate"] = result.acceptance_rate
            row["tpot_ms"] = row["tpot_ms"] or None  # undefined too if all tokens arrived at once
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on without it
            reason = (str(error).strip().splitlines() or [""])[0]
            row |= {"status": "failed", "error": f"{type(error).__name__}: {reason}"}
            self.failed.add((*way.key, sampling.temperature))
            print(f"failed: {way}: {row['error']}", flush=True)
        return row


def _prompts(params: StudyParams, pair: Pair, count: int | None) -> Prompts:
    if pair.tokenizer is None:
        ids = random_prompts(pair.target.vocab_size, count or 2, 0, torch.Generator().manual_seed(params.seed))
        return [(Prompt(f"random-{i}", "random", ""), tokens) for i, tokens in enumerate(ids)]
    known = load_prompts(params.prompt_set)[:count]
    return list(zip(known, encode_prompts(known, pair.tokenizer, 0), strict=True))


def _write(rows: list[Row], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({field.name: [row.get(field.name) for row in rows] for field in SCHEMA}, schema=SCHEMA)
    temporary = folder / f"{FILE}.tmp"
    pq.write_table(table, temporary)
    temporary.replace(folder / FILE)


def read_peers(folder: Path) -> pd.DataFrame:
    """The rows of a comparison with other engines, one for each call; what is undefined is null.

    Raises:
        ValueError: there are none yet.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: run the comparison first, with make bench-peers GPU=<name>")
    return pd.read_parquet(path, dtype_backend="numpy_nullable")
