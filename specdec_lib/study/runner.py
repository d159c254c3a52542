"""Run blocks of a study in this process and write their rows. What fails leaves a row that says why."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Collection, Iterable
from itertools import product
from pathlib import Path
from uuid import uuid4

import torch
import transformers
from tqdm import tqdm

from specdec_lib.config import StudyParams
from specdec_lib.decoding.captured_loop import drop_captured, new_graphs
from specdec_lib.decoding.checks import check_context
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.machine.environment import compiler_of, device_name
from specdec_lib.machine.telemetry import MEMORY, Telemetry
from specdec_lib.models import host_memory
from specdec_lib.models.pair import Pair
from specdec_lib.study.cells import FIXED, Block, Cell, Source, plan, spread_evenly
from specdec_lib.study.decode_cell import decode_cell
from specdec_lib.study.prompts import Encoded, prompt_set_hash, study_prompts
from specdec_lib.study.rows.columns import counter_columns, identity_columns, latency_columns
from specdec_lib.study.rows.drift import unsteady
from specdec_lib.study.rows.schema import Row
from specdec_lib.study.rows.stops import stop_columns
from specdec_lib.study.run_folder import read_cell, whole_runs, write_cell
from specdec_lib.study.workers import heartbeat
from specdec_lib.study.workers.team import Team, merge_ranks

WARM_UP_TOKENS = 4
TERMINAL = "SPECDEC_TERMINAL"  # set where output that is no terminal is passed on to one, as a kernel's


def source_of(params: StudyParams, pair: Pair) -> Source:
    """What decides a cell's numbers on this machine with this pair."""
    weights = pair.files | ({"config.json": pair.configs} if pair.configs else {})
    return Source(
        gpu=params.gpu,
        device_name=device_name(params.device),
        pair=pair.name,
        target_id=pair.target_id,
        draft_id=pair.draft_id,
        weights=hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:16],
        software=f"torch {torch.__version__}, transformers {transformers.__version__}, " + compiler_of(pair.target),
        dtype=params.dtype,
        threads=torch.get_num_threads(),
        prompt_set=Path(params.prompt_set).name,
        prompt_set_hash=prompt_set_hash(params, pair.tokenizer),
    )


class BlockRunner:
    """Runs blocks of one study on one pair in this process; `run_id` names its rows.

    Args:
        team: the processes that run the blocks in step, if there are several; the first decides and writes.

    Raises:
        ValueError: prompts and output exceed the context of target or draft.
    """

    def __init__(self, params: StudyParams, folder: Path, pair: Pair, team: Team | None = None):
        self.params, self.folder, self.pair = params, folder, pair
        self.team = team or Team()
        self.run_id = self.team.decide(lambda: uuid4().hex[:12])
        self.source = source_of(params, pair)
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

    def run(self, numbers: Collection[int] | None = None, skip: Collection[str] = ()) -> None:
        """Run what is missing of the blocks with these numbers (None: of all), but no cell whose id is in `skip`.

        The blocks of every setting are spread over the whole, because the speed of a shared machine changes over time.
        Where steps are captured the blocks of a setting follow one another, because each setting needs its captures.
        """
        chosen = [b for number, b in enumerate(self.blocks) if numbers is None or number in numbers]
        if new_graphs(self.pair.target) is None:
            chosen = spread_evenly([[b for b in chosen if b.setting == setting] for setting in self.prompts])
        wanted = {*self.team.decide(lambda: [cell.id for b in chosen for cell in b.missing(self.folder)])}
        missing = [[cell for cell in b.cells if cell.id in wanted and cell.id not in skip] for b in chosen]
        total, to_do = sum(len(b.cells) for b in chosen), sum(map(len, missing))
        failed = f", {len(skip)} failed" if skip else ""
        print(f"{total} cells: {total - to_do - len(skip)} are finished{failed}, {to_do} to run", flush=True)
        shown = self.team.leads and bool(sys.stderr.isatty() or os.environ.get(TERMINAL))
        done, started = 0, time.monotonic()
        with tqdm(total=to_do, unit="cell", disable=not shown) as progress:
            for this, cells in [(b, cells) for b, cells in zip(chosen, missing, strict=True) if cells]:
                self._run_block(this, cells, skip)
                done += len(cells)
                progress.update(len(cells))
                if not shown:
                    left = (time.monotonic() - started) / done * (to_do - done)
                    print(f"[{done}/{to_do} cells, about {left / 60:.0f} min left] {this.setting}", flush=True)

    def _run_block(self, this: Block, cells: list[Cell], skip: Collection[str]) -> None:
        """Measure the missing `cells` of a block and write them; a second time if the first was unsteady.

        If the block's baseline had finished in an earlier run, it runs again with them and its rows are added: ratios
        are taken within one run. What the second measurement finds stays, and the table marks it.
        """
        baseline = this.cells[0]
        kept = whole_runs(read_cell(self.folder, baseline.id)) if baseline.id not in skip else []
        block_cells = [baseline, *(cell for cell in cells if cell != baseline)] if baseline.id not in skip else cells
        prompts = [self.prompts[this.setting][index] for index in this.prompts]
        self._release_memory()  # of other settings; what this one needs comes back with its warming up
        self.warm.clear()
        self.memory = self._memory_of_each(block_cells, prompts) if new_graphs(self.pair.target) else {}
        rows = self._measure(block_cells, prompts)
        if self.team.decide(lambda: unsteady(row for each in rows.values() for row in each)):
            print(f"measured once more, because the machine changed or was shared: {this.setting}", flush=True)
            rows = self._measure(block_cells, prompts)
        if self.team.leads:
            for cell in block_cells:
                write_cell(self.folder, cell.id, (kept if cell == baseline else []) + rows[cell])
            heartbeat.write_heartbeat(self.folder, heartbeat.BETWEEN, self.run_id)

    def _measure(self, cells: list[Cell], prompts: list[Encoded]) -> dict[Cell, list[Row]]:
        """All repetitions of the cells, interleaved in a new order each time; none of a cell after it failed."""
        rows: dict[Cell, list[Row]] = {cell: [] for cell in cells}
        for repetition in range(self.params.repetitions):
            order = [cell for cell in cells if all(row["status"] == "ok" for row in rows[cell])]
            random.Random(f"{cells[0].id} {repetition}").shuffle(order)
            for cell in order:
                rows[cell].append(self._row(cell, repetition, prompts))
        return rows

    def _row(self, cell: Cell, repetition: int, prompts: list[Encoded]) -> Row:
        row = self._begin(cell, repetition, prompts)
        columns = self._columns(cell, repetition, prompts)
        self.team.check(columns.get("error"))
        row |= merge_ranks(self.team.share(columns))
        if row["status"] == "failed":
            print(f"failed: {cell}: {row['error']}", flush=True)
            self._release_memory()
        return row

    def _begin(self, cell: Cell, repetition: int, prompts: list[Encoded]) -> Row:
        """The identity columns of a row, which go into the heartbeat too."""
        row = identity_columns(cell, repetition, prompts) | {"run_id": self.run_id}
        if self.team.leads:
            heartbeat.write_heartbeat(self.folder, heartbeat.CELL, self.run_id, row)
        return row

    def _memory_of_each(self, cells: Iterable[Cell], prompts: list[Encoded]) -> dict[Cell, Row]:
        """The memory columns of each cell with nothing in memory that the others captured, or why it failed.

        Repetitions are interleaved, and what all cells of the block captured stays for the next: they cannot tell.
        """
        found = {}
        for cell in cells:
            self._begin(cell, 0, prompts)
            drop_captured(self.pair.target)
            self._release_memory()
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
                    break  # else energy and memory include capturing: once more, with what was captured
            compiled = cell.engine != "transformers" and self.pair.target.engine != "eager"
            columns: Row = {"compiled": compiled, "replayed": result.replayed}
            columns |= counter_columns(cell, result) | latency_columns(result)
            if cell.stop == FIXED:
                columns |= stop_columns(result, self.pair.stop_token_ids)
            return columns | self.telemetry.columns(result.new_tokens) | memory
        except Exception as error:  # noqa: BLE001 - out of memory or anything else: the sweep goes on without it
            reason = str(error).strip().splitlines() or [""]
            return {"status": "failed", "error": f"{type(error).__name__}: {reason[0]}"}

    def _warm_up(self, cell: Cell, prompts: list[torch.Tensor]) -> None:
        """Once in a block for each shape of work, a few tokens outside the measurement."""
        speculation = cell.method, cell.draft_length, cell.num_draft_tokens
        kind = (cell.engine, *speculation, cell.batch_size, cell.prompt_tokens, cell.temperature)
        if kind not in self.warm:
            self._decode(cell, prompts, min(WARM_UP_TOKENS, cell.max_new_tokens), seed=0)
            self.warm.add(kind)

    def _release_memory(self) -> None:
        """Give back the memory that allocators hold for what comes next."""
        host_memory.give_back()
        torch.cuda.empty_cache()  # nothing where CUDA was not started

    def _decode(self, cell: Cell, prompts: list[torch.Tensor], max_new_tokens: int, seed: int) -> DecodeResult:
        return decode_cell(self.pair, cell, prompts, max_new_tokens=max_new_tokens, seed=seed)
