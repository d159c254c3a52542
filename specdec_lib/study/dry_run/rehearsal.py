"""A GPU study rehearsed without its GPU: each kind of step of it on a `FakeDevice`, at its real size.

A step runs as it is captured: once, and once more for the capture, which must find the same. The largest step runs with
whole models, every kind of step with their first layers. Steps are of one kind if they differ in sizes alone: one of
them runs, and the largest of each setting. What is found wrong is a `FaultError`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from specdec_lib.config import StudyParams
from specdec_lib.machine.environment import describe_environment
from specdec_lib.machine.fake_device import FakeDevice
from specdec_lib.methods import METHODS, RULES
from specdec_lib.models.pair import Pair
from specdec_lib.study.cells import Cell, Setting, settings
from specdec_lib.study.dry_run.fake_gpu import (
    Depths,
    check_captured,
    depths_of,
    fake_gpu,
    fake_pair,
    shapes_of,
    short_pair,
    with_head,
)
from specdec_lib.study.dry_run.memory_plan import Need, cells_of, largest_cell, rehearse_cell, tokens_of
from specdec_lib.study.run_folder import read_cell
from specdec_lib.study.runner import BlockRunner

AXES = ("batch_sizes", "prompt_tokens", "max_new_tokens", "temperatures")


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found."""

    needs: list[Need]  # one for each setting, of the pair's own draft and of a draft head
    faults: list[str]


def rehearse(params: StudyParams, report: Callable[[str], None] = print) -> Rehearsal:
    """Run two steps of each kind that a study has, at each of its batches and contexts, and a block of its sweep.

    Args:
        report: is told how each setting went.

    Raises:
        ValueError: the study is of no GPU, or its pair has no known configuration or no captured steps.
    """
    check_captured(params)
    found = Rehearsal([], [])
    with fake_gpu(params) as device:
        device.precision = getattr(torch, params.dtype)
        whole = fake_pair(params)
        largest = max(settings(params), key=lambda each: (each.batch_size * tokens_of(each), each.temperature))
        depths = depths_of(whole, shapes_of(params))
        _rehearse_cells(device, whole, [largest_cell(params, whole, largest)], largest, depths, found, report)
        own, depths = short_pair(params)
        for setting, cells in kinds_of_cells(params, own):
            if not cells:
                report(f"{setting}: steps of the same kind as before")
                continue
            drafted = [cell for cell in cells if cell.num_draft_tokens and METHODS[cell.method].uses_pair_draft]
            _rehearse_cells(device, own, cells, setting, depths, found, report)
            _rehearse_cells(device, with_head(own), drafted, setting, depths, found, report)
        found.faults.extend(_rehearse_sweep(params, own))
    return found


def _rehearse_cells(
    device: FakeDevice,
    pair: Pair,
    cells: list[Cell],
    setting: Setting,
    depths: Depths,
    found: Rehearsal,
    report: Callable[[str], None],
) -> None:
    """Add the most that a cell of a setting needs, and what is wrong with any of them."""
    started, needs = time.monotonic(), []
    for cell in cells:
        try:
            needs.append(rehearse_cell(device, pair, cell, depths))
        except Exception as error:  # noqa: BLE001 - each is a finding, and the others are tried
            found.faults.append(f"{pair.draft_id}: {cell}, rule {cell.verification}: {_one_line(error)}")
            report(f"fault: {found.faults[-1]}")
    if needs:
        found.needs.append(max(needs, key=lambda need: need.needed_bytes))
    kinds = f"{len(needs)} of {len(cells)} kinds of step, {pair.target.num_layers} layers"
    report(f"{pair.draft_id}: {setting}: {kinds} ({time.monotonic() - started:.0f} s)")


def kinds_of_cells(params: StudyParams, pair: Pair) -> Iterator[tuple[Setting, list[Cell]]]:
    """For each setting the cells that are rehearsed.

    At the headline and at the first larger batch, whose tensors have no size of one, these are all methods at every
    temperature; at the headline with the least, the headline's and the most draft tokens, and with each rule. Another
    setting has sizes of its own and no more: its largest cell is rehearsed, at the last temperature.
    """
    first_larger = next((size for size in params.batch_sizes[1:] if size > 1), None)
    gamma = params.headline_num_draft_tokens
    tried = {None, min(params.num_draft_tokens), gamma, max(params.num_draft_tokens)}
    for setting in settings(params):
        if setting.headline:
            cells = [each for each in cells_of(params, pair, setting) if each.num_draft_tokens in tried]
            of_rule = [each for each in cells if each.num_draft_tokens == gamma]
            cells += [
                replace(each, verification=rule) for rule in RULES for each in of_rule if each.verification != rule
            ]
        elif setting.batch_size == first_larger:
            cells = [each for each in cells_of(params, pair, setting) if each.num_draft_tokens in (None, gamma)]
        else:
            last = setting.temperature == params.temperatures[-1]
            cells = [largest_cell(params, pair, setting)] if last else []
        yield setting, cells


def _rehearse_sweep(params: StudyParams, pair: Pair) -> list[str]:
    """One block through the sweep's own runner, with its telemetry; returns what failed."""
    few = {"num_prompts": 1, "num_axis_prompts": 1, "repetitions": 1, "design": "one-at-a-time"}
    first = {name: getattr(params, name)[:1] for name in AXES}
    gamma = {"num_draft_tokens": [params.headline_num_draft_tokens], "compare_transformers": False}
    with tempfile.TemporaryDirectory() as folder:
        try:
            describe_environment(params)
            runner = BlockRunner(params.model_copy(update=few | first | gamma), Path(folder), pair)
            runner.run([0])
        except Exception as error:  # noqa: BLE001 - a finding
            return [f"the sweep: {_one_line(error)}"]
        rows = [row for cell in runner.blocks[0].cells for row in read_cell(Path(folder), cell.id)]
    return [f"the sweep, {row['method']}: {row['error']}" for row in rows if row["status"] != "ok"]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
