"""Run a single cell of a finished run again and compare its tokens with those of the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from specdec_lib.machine.environment import check_device
from specdec_lib.models.pair import load_study_pair
from specdec_lib.params_files import params_of_run
from specdec_lib.study.cells import Block, Cell
from specdec_lib.study.decode_cell import decode_cell
from specdec_lib.study.rows.columns import fingerprint
from specdec_lib.study.run_folder import read_cell, read_environment
from specdec_lib.study.runner import BlockRunner

MATCHED = (
    *("engine", "method", "verification", "draft_length", "num_draft_tokens", "temperature", "top_k", "top_p"),
    *("batch_size", "prompt_tokens", "max_new_tokens", "prompt_group"),
)  # what tells the cells of a study apart, also on a machine where they have other ids


@dataclass(frozen=True)
class Rerun:
    """What running a cell again found."""

    cell_id: str
    compared: int  # decoded rows, over all repetitions
    different: list[str]  # those whose tokens differ, each as "repetition r row b"
    changed: list[str]  # what determines the cell and is not as it was, such as another version of PyTorch

    def sentence(self) -> str:
        """The verdict in one line."""
        changed = f"; since the run changed: {'; '.join(self.changed)}" if self.changed else ""
        if not self.different:
            return f"{self.cell_id}: same tokens in all {self.compared} decoded rows{changed}"
        where = ", ".join(self.different[:4]) + (", ..." if len(self.different) > 4 else "")
        return f"{self.cell_id}: different tokens in {len(self.different)} of {self.compared} rows ({where}){changed}"


def rerun(folder: Path, cell_id: str) -> Rerun:
    """Decode all repetitions of a cell again, without the rest of the sweep, and compare the tokens; writes nothing.

    Raises:
        ValueError: the folder does not hold the cell whole, or this is another device than the run's.
    """
    rows = [row for row in read_cell(folder, cell_id) if row["status"] == "ok" and row.get("tokens_sha256")]
    if not rows:
        raise ValueError(f"{folder} holds no finished cell {cell_id} with fingerprints of its tokens: run it first")
    facts = read_environment(folder)["runs"][rows[0]["run_id"]]
    params = params_of_run(facts, source=f"{folder.name}/environment.json")
    check_device(params)
    runner = BlockRunner(params, folder, load_study_pair(params))
    cells: list[tuple[Block, Cell]] = [(block, cell) for block in runner.blocks for cell in block.cells]
    matched = {name: rows[0][name] for name in MATCHED if name in rows[0]}  # an old row lacks what came later
    block, cell = next(pair for pair in cells if all(getattr(pair[1], name) == matched[name] for name in matched))
    prompts = [runner.prompts[block.setting][number][1] for number in block.prompts]
    different = []
    for row in rows:
        seed = int(str(row["seed"]))
        result = decode_cell(runner.pair, cell, prompts, max_new_tokens=cell.max_new_tokens, seed=seed)
        found, kept = fingerprint(result.tokens).split(), str(row["tokens_sha256"]).split()
        for place, (one, other) in enumerate(zip(found, kept, strict=True)):
            different += [f"repetition {row['repetition']} row {place}"] * (one != other)
    before, now = facts.get("source", {}), asdict(runner.source)
    changed = [f"{name} from {before[name]} to {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    return Rerun(cell_id, len(rows) * len(prompts), different, changed)
