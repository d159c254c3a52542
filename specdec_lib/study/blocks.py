"""The plan of a study: blocks of cells that run interleaved in one process and are paired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from specdec_lib.config import StudyParams
from specdec_lib.study.cell_files import finished, read_cell, whole_runs
from specdec_lib.study.cells import Cell, Setting, Source, block, prompt_groups, settings

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """The cells of one setting and prompt group, the baseline first.

    Attributes:
        prompts: their numbers; see `prompt_groups`.
    """

    setting: Setting
    prompts: list[int]
    cells: list[Cell]

    def missing(self, folder: Path) -> list[Cell]:
        """The cells that `folder` does not hold yet. A cell counts only with its baseline of the same run.

        Ratios are taken within one run. So a cell whose baseline died with its process is measured again.
        """
        rows = {cell: read_cell(folder, cell.id) for cell in self.cells}
        baseline_runs = {row["run_id"] for row in whole_runs(rows[self.cells[0]])}
        return [
            cell
            for cell in self.cells
            if not finished(rows[cell]) or not {row["run_id"] for row in rows[cell]} & baseline_runs
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


def spread_evenly(sequences: Iterable[Sequence[T]]) -> list[T]:
    """Merge sequences: each keeps its order and is spread over the whole."""
    places = [((number + 0.5) / len(each), item) for each in sequences for number, item in enumerate(each)]
    return [item for _, item in sorted(places, key=lambda place: place[0])]
