"""Run blocks of a study in this process and write their rows. What fails leaves a row that says why.

A block is one setting and prompt group: its cells are interleaved and paired, so that they must share a process.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
import transformers
from tqdm import tqdm

from specdec_lib.config import StudyParams
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.state import check_context
from specdec_lib.decoding.step_loop import drop_captured, new_graphs
from specdec_lib.machine.engine_facts import compiler_of
from specdec_lib.machine.environment import device_name
from specdec_lib.machine.telemetry import MEMORY, Telemetry
from specdec_lib.models import host_memory
from specdec_lib.models.pair import Pair
from specdec_lib.study.cell_files import Row, finished, read_cell, whole_runs, write_cell
from specdec_lib.study.cells import Cell, Setting, Source, block, prompt_groups, settings
from specdec_lib.study.columns import counter_columns, identity_columns
from specdec_lib.study.decode_cell import decode_cell
from specdec_lib.study.drift import steady_runs, undisturbed_runs
from specdec_lib.study.given_acceptance import given_columns
from specdec_lib.study.prompts import Encoded, prompt_set_hash, study_prompts
from specdec_lib.study.timing import latency_columns
from specdec_lib.study.workers import heartbeat
from specdec_lib.study.workers.team import Team, together

WARM_UP_TOKENS = 4
TERMINAL = "SPECDEC_TERMINAL"  # set by who runs this in a kernel whose output ends in a terminal

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Cells that run interleaved in one process, the baseline first, on the prompts with these numbers."""

    setting: Setting
    prompts: list[int]
    cells: list[Cell]

    def missing(self, folder: Path) -> list[Cell]:
        """The cells that `folder` does not hold yet. A cell counts only beside its baseline of the same run.

        Ratios are taken within one run, so that a cell whose baseline died with its process has nothing to stand on,
        nor has one whose baseline drifted. Neither may have run throttled or beside other processes: such rows are in
        no ratio.
        """
        baseline = steady_runs(whole_runs(read_cell(folder, self.cells[0].id)))
        runs = {row["run_id"] for row in baseline}
        found = {cell: undisturbed_runs(read_cell(folder, cell.id)) for cell in self.cells}
        return [
            cell
            for cell, rows in found.items()
            if not finished(folder, cell.id)
            or not {row["run_id"] for row in rows} & runs
            or not cell.repetitions.settled(baseline, rows)
        ]


def plan(params: StudyParams, source: Source) -> list[Block]:
    """All blocks of a study; a block's number is its place in this list."""
    return [
        Block(setting, indices, block(params, source, setting, group))
        for setting in settings(params)
        for group, indices in enumerate(prompt_groups(params, setting))
    ]


def num_blocks(params: StudyParams) -> int:
    """How many blocks a study has, on any device."""
    return sum(len(prompt_groups(params, setting)) for setting in settings(params))


def evenly(sequences: Iterable[Sequence[T]]) -> list[T]:
    """All of several sequences in one, each in its order and spread over the whole."""
    places = [((number + 0.5) / len(each), item) for each in sequences for number, item in enumerate(each)]
    return [item for _, item in sorted(places, key=lambda place: place[0])]


class BlockRunner:
    """Blocks of one study on one pair, run in this process; `run_id` names its rows.

    Args:
        team: the processes that run them in step, if there are several; the first decides and writes.
    """

    def __init__(self, params: StudyParams, folder: Path, pair: Pair, team: Team | None = None):
        self.params, self.folder, self.pair = params, folder, pair
        self.team = team or Team()
        self.run_id = self.team.decide(lambda: uuid4().hex[:12])
        self.source = Source(
            gpu=params.gpu,
            device_name=device_name(params.device),
            pair=pair.name,
            target_id=pair.target_id,
            draft_id=pair.draft_id,
            weights=hashlib.sha256(json.dumps(pair.files, sort_keys=True).encode()).hexdigest()[:16],
            software=f"torch {torch.__version__}, transformers {transformers.__version__}, " + compiler_of(pair.target),
            dtype=params.dtype,
            threads=torch.get_num_threads(),
            prompt_set=params.prompt_set,
            prompt_set_hash=prompt_set_hash(params.prompt_set),
        )
        self.telemetry = Telemetry(params.device)
        self.warm: set[tuple[object, ...]] = set()
        self.memory: dict[Cell, Row] = {}  # of the present block's cells, each alone
        self.blocks = plan(params, self.source)
        self.prompts = {
            setting: study_prompts(params, setting, pair.tokenizer, pair.target.vocab_size)
            for setting in dict.fromkeys(b.setting for b in self.blocks)
        }
        for setting, model in product(self.prompts, (pair.target, pair.draft)):
            check_context(model, max(len(ids) for _, ids in self.prompts[setting]), setting.max_new_tokens)

    def run(
        self,
        numbers: Collection[int] | None = None,
        skip: Collection[str] = (),
        behind_block: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Run what is missing of the blocks with these numbers (None: of all), but no cell whose id is in `skip`.

        The blocks of every setting are spread over the whole: a machine that others use too changes while this goes on.
        Where steps are captured they follow one another, for another setting needs other captures.

        Args:
            behind_block: called behind each block, with the share of all this that is done.
        """
        chosen = [b for number, b in enumerate(self.blocks) if numbers is None or number in numbers]
        if new_graphs(self.pair.target) is None:
            chosen = evenly([[b for b in chosen if b.setting == setting] for setting in self.prompts])
        wanted = {*self.team.decide(lambda: [cell.id for b in chosen for cell in b.missing(self.folder)])}
        missing = [[cell for cell in b.cells if cell.id in wanted and cell.id not in skip] for b in chosen]
        total, to_do = sum(len(b.cells) for b in chosen), sum(map(len, missing))
        failed = f", {len(skip)} failed" if skip else ""
        print(f"{total} cells: {total - to_do - len(skip)} are finished{failed}, {to_do} to run", flush=True)
        shown = sys.stderr.isatty() or os.environ.get(TERMINAL)
        self.progress = tqdm(total=to_do, unit="cell", disable=not (self.team.leads and shown))
        done, started = 0, time.monotonic()
        for chosen_block, cells in zip(chosen, missing, strict=True):
            if not cells:
                continue
            self._run_block(chosen_block, cells, skip)
            done += len(cells)
            behind_block(done / to_do)
            if self.progress.disable:
                left = (time.monotonic() - started) / done * (to_do - done)
                print(f"[{done}/{to_do} cells, about {left / 60:.0f} min left] {chosen_block.setting}", flush=True)
        self.progress.close()

    def _run_block(self, this: Block, cells: list[Cell], skip: Collection[str]) -> None:
        """All repetitions of the missing `cells`, interleaved in a new order each time; each is written when it ends.

        Those that may be repeated further are written after every further repetition too.

        If the block's baseline had finished in an earlier run, it runs again beside them and its rows are added: ratios
        are taken within one run. What had drifted or was disturbed makes room for what is measured now.
        """
        self._drop_reserve()  # of other settings; what this one needs comes back with its warming up
        self.warm.clear()
        prompts = [self.prompts[this.setting][index] for index in this.prompts]
        baseline = this.cells[0]
        rows: dict[Cell, list[Row]] = {cell: [] for cell in cells}
        if baseline.id not in skip:
            rows[baseline] = steady_runs(whole_runs(read_cell(self.folder, baseline.id)))
        self.memory = self._memory_of_each(rows, prompts) if new_graphs(self.pair.target) else {}
        failed: set[Cell] = set()
        going, repetition = list(rows), 0
        while going:
            order = list(going)
            random.Random(f"{baseline.id} {repetition}").shuffle(order)
            for cell in order:
                rows[cell].append(self._row(cell, repetition, prompts))
                if rows[cell][-1]["status"] == "failed":
                    failed.add(cell)
                if self.team.leads and (cell in failed or repetition + 1 >= cell.repetitions.least):
                    write_cell(self.folder, cell.id, rows[cell])
            repetition += 1
            still = self._unsettled([cell for cell in going if cell not in failed], rows, baseline, repetition)
            self.progress.update(len(({*going} - {*still}) & {*cells}))
            going = still

    def _row(self, cell: Cell, repetition: int, prompts: list[Encoded]) -> Row:
        """Run one repetition of a cell; a failure is a row too."""
        row = self._begin(cell, repetition, prompts)
        columns = self._columns(cell, repetition, prompts)
        row |= together(self.team.share(columns, failure=columns.get("error")))
        if row["status"] == "failed":
            print(f"failed: {cell}: {row['error']}", flush=True)
            self._drop_reserve()
        elif self.params.accepted_per_step:
            row |= given_columns(row)
        return row

    def _begin(self, cell: Cell, repetition: int, prompts: list[Encoded]) -> Row:
        """The beginning of a row, which whoever watches is told too."""
        row = identity_columns(cell, repetition, prompts) | {"run_id": self.run_id}
        if self.team.leads:
            heartbeat.beat(self.folder, heartbeat.CELL, self.run_id, row)
        return row

    def _memory_of_each(self, cells: Iterable[Cell], prompts: list[Encoded]) -> dict[Cell, Row]:
        """The memory columns of each cell with nothing in memory that the others captured, or why it failed.

        Repetitions are interleaved, and what all cells of the block captured stays for the next: they cannot tell.
        """
        found = {}
        for cell in cells:
            self._begin(cell, 0, prompts)
            drop_captured(self.pair.target)
            self._drop_reserve()
            columns = self._columns(cell, 0, prompts)
            found[cell] = columns if "error" in columns else {name: columns[name] for name in MEMORY}
        return found

    def _columns(self, cell: Cell, repetition: int, prompts: list[Encoded]) -> Row:
        """What this process measured of one repetition, or why it failed."""
        memory = self.memory.get(cell, {})
        if "error" in memory:
            return memory
        seed, tokens = cell.repetition_seed(repetition), [ids for _, ids in prompts]
        try:
            self._warm_up(cell, tokens)
            for _ in range(2):
                with self.telemetry:
                    result = self._decode(cell, tokens, cell.max_new_tokens, seed)
                if not result.capture_s:
                    break  # else energy and memory are those of capturing, too: once more, with what was captured
            compiled = cell.engine != "transformers" and self.pair.target.engine != "eager"
            columns: Row = {"compiled": compiled, "replayed": result.replayed}
            columns |= counter_columns(result) | latency_columns(result)
            return columns | self.telemetry.columns(result.new_tokens) | memory
        except Exception as error:  # noqa: BLE001 - out of memory or anything else: the sweep goes on without it
            reason = str(error).strip().splitlines() or [""]
            return {"status": "failed", "error": f"{type(error).__name__}: {reason[0]}"}

    def _warm_up(self, cell: Cell, prompts: list[torch.Tensor]) -> None:
        """Once in a block for each shape of work, a few tokens outside the measurement."""
        kind = (cell.engine, cell.method, cell.num_draft_tokens, cell.batch_size, cell.prompt_tokens, cell.temperature)
        if kind not in self.warm:
            self._decode(cell, prompts, min(WARM_UP_TOKENS, cell.max_new_tokens), seed=0)
            self.warm.add(kind)

    def _drop_reserve(self) -> None:
        """Give back the memory that allocators hold for what comes next."""
        host_memory.give_back()
        if self.pair.target.device.type == "cuda":
            torch.cuda.empty_cache()

    def _decode(self, cell: Cell, prompts: list[torch.Tensor], max_new_tokens: int, seed: int) -> DecodeResult:
        given = self.params.accepted_per_step
        return decode_cell(self.pair, cell, prompts, max_new_tokens=max_new_tokens, seed=seed, accepted_per_step=given)

    def _unsettled(
        self, going: list[Cell], rows: dict[Cell, list[Row]], baseline: Cell, repetitions: int
    ) -> list[Cell]:
        """The cells to repeat after so many `repetitions`: all, then those not settled and the baseline."""
        early = [cell for cell in going if repetitions < cell.repetitions.least]
        if early or baseline not in going:
            return early
        settled = self.team.decide(
            lambda: [cell.id for cell in going if cell.repetitions.settled(rows[baseline], rows[cell])]
        )
        late = [cell for cell in going if cell.id not in settled]
        return [baseline, *late] if late else []
