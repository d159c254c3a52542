"""Run a single cell of a finished run again and compare its tokens with those of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from specdec_lib.config import params_of_run
from specdec_lib.machine.environment import check_device
from specdec_lib.models.pair import load_study_pair
from specdec_lib.study.cell_files import read_cell
from specdec_lib.study.cells import Cell
from specdec_lib.study.decode_cell import decode_cell, fingerprint
from specdec_lib.study.environment_file import read_environment
from specdec_lib.study.runner import BlockRunner
from specdec_lib.study.schema import Row

MATCHED = (
    *("engine", "method", "verification", "num_draft_tokens", "temperature", "top_k", "top_p", "batch_size"),
    *("prompt_tokens", "max_new_tokens", "prompt_group"),
)


@dataclass(frozen=True)
class Rerun:
    """What running a cell again found.

    Attributes:
        compared: decoded rows that were compared, over all repetitions.
        different: those whose tokens differ, each as "repetition r row b".
        changed: what determines the cell and is not as it was, such as another version of PyTorch.
    """

    cell_id: str
    compared: int
    different: list[str]
    changed: list[str]

    def sentence(self) -> str:
        """The verdict in one line."""
        changed = f"; since the run changed: {'; '.join(self.changed)}" if self.changed else ""
        if not self.different:
            return f"{self.cell_id}: same tokens in all {self.compared} decoded rows{changed}"
        where = ", ".join(self.different[:4]) + (", ..." if len(self.different) > 4 else "")
        return f"{self.cell_id}: different tokens in {len(self.different)} of {self.compared} rows ({where}){changed}"


def find_run(outputs: Path, cell_id: str) -> Path:
    """The folder below `outputs` whose run holds this cell.

    Raises:
        ValueError: there is none.
    """
    for path in sorted(outputs.glob(f"*/cells/{cell_id}.json")):
        return path.parent.parent
    raise ValueError(f"no run below {outputs} holds a cell {cell_id}: take a cell_id of a results.parquet there")


def rerun(folder: Path, cell_id: str, *, alone: bool = False) -> Rerun:
    """Decode all repetitions of a cell again, without the rest of the sweep, and compare the tokens; writes nothing.

    Args:
        folder: of the run.
        alone: decode each row of the batch by itself, instead of all rows together.

    Raises:
        ValueError: the folder does not hold the cell whole, this is another device than the run's, or rows were asked
            for alone of an engine that draws for all of them together.
    """
    rows = [row for row in read_cell(folder, cell_id) if row["status"] == "ok" and row.get("tokens_sha256")]
    if not rows:
        raise ValueError(f"{folder} holds no finished cell {cell_id} with fingerprints of its tokens: run it first")
    facts = read_environment(folder)["runs"][rows[0]["run_id"]]
    params = params_of_run(facts, source=f"{folder.name}/environment.json")
    check_device(params)
    if alone and (rows[0]["engine"] != "specdec_lib" or params.accepted_per_step):
        raise ValueError(
            f"the rows of {cell_id} share their random numbers or acceptance: run it again without --alone"
        )
    runner = BlockRunner(params, folder, load_study_pair(params))
    cell, prompts = _find(runner, rows[0])
    changed = _changed(facts.get("source", {}), asdict(runner.source))
    different = []
    for row in rows:
        found = _fingerprint(runner, cell, prompts, int(str(row["seed"])), alone=alone)
        for place, (one, other) in enumerate(zip(found, str(row["tokens_sha256"]).split(), strict=True)):
            different += [f"repetition {row['repetition']} row {place}"] * (one != other)
    return Rerun(cell_id, len(rows) * len(prompts), different, changed)


def _find(runner: BlockRunner, row: Row) -> tuple[Cell, list[torch.Tensor]]:
    """The cell that this row was of, and its prompts. Its id is another one if anything changed on the machine."""
    for block in runner.blocks:
        for cell in block.cells:
            if all(getattr(cell, name) == row[name] for name in MATCHED):
                return cell, [runner.prompts[block.setting][index][1] for index in block.prompts]
    raise ValueError(f"the params of the run have no cell {row['cell_id']}: the file and environment.json disagree")


def _fingerprint(
    runner: BlockRunner, cell: Cell, prompts: Sequence[torch.Tensor], seed: int, *, alone: bool
) -> list[str]:
    """One for each row of the cell."""
    batches = [[row] for row in range(len(prompts))] if alone else [list(range(len(prompts)))]
    found = []
    for rows in batches:
        result = decode_cell(
            runner.pair,
            cell,
            [prompts[row] for row in rows],
            max_new_tokens=cell.max_new_tokens,
            seed=seed,
            rows=rows,
        )
        found += fingerprint(result.tokens).split()
    return found


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What determines a cell's numbers and differs."""
    return [
        f"{name} from {before[name]} to {now[name]}" for name in now if name in before and before[name] != now[name]
    ]
