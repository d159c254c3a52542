"""Faults of what a study reads and writes: full and read-only disks, damaged weights and cells, other params."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from checkpoints import write_checkpoint
from toy_sweep import cells_in, determined, python, toy_params

from specdec_lib.study.run_folder import read_environment
from specdec_lib.study.sweep import run_sweep, run_sweep_here

NAMESPACES = ("unshare", "--map-root-user", "--mount")  # a place of one's own to mount file systems in

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def can_mount(folder):
    command = [*NAMESPACES, "mount", "-t", "tmpfs", "none", str(folder)]
    return shutil.which("unshare") and subprocess.run(command, capture_output=True, check=False).returncode == 0


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def on_a_small_disk(folder, table):
    """In a namespace whose `folder` is a small disk: read-only at first, then full in mid-sweep, then large enough."""
    remount(folder, "ro")
    for run in (run_sweep, run_sweep, run_sweep_here):
        try:
            rows = run(toy_params(), folder / "smoke")
        except RuntimeError as error:
            print(f"refused: {error}", flush=True)
            print(f"cells: {json.dumps(sorted(cells_in(folder / 'smoke')))}", flush=True)
            remount(folder, "rw,size=48k" if run is run_sweep and "Read-only" in str(error) else "size=64M")
    rows.to_parquet(table)


@pytest.mark.slow
def test_a_read_only_or_full_disk_is_one_line_and_the_study_goes_on_when_there_is_room(tmp_path):
    """A real read-only file system, then a real full one: no failed row, finished cells kept, no half file left."""
    (disk := tmp_path / "disk").mkdir()
    if not can_mount(disk):
        pytest.skip("nothing can be mounted here: no user namespaces")
    here = f"PYTHONPATH={SUPPORT}{os.pathsep}{os.environ.get('PYTHONPATH', '')} {sys.executable} {__file__}"
    script = f"mount -t tmpfs -o size=1M none {disk} && {here} {disk} {tmp_path / 'table'}"
    with python("-c", f"import os; os.execvp('unshare', {[*NAMESPACES, 'sh', '-c', script]!r})") as run:
        said, _ = run.communicate()
    assert run.returncode == 0, said
    read_only, full = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert "(Read-only file system): what is finished there is kept; make room or choose" in read_only
    assert "(No space left on device): what is finished there is kept; make room or choose" in full
    nothing, some = [json.loads(line.removeprefix("cells: ")) for line in said.splitlines() if "cells: [" in line]
    assert nothing == []
    assert 0 < len(some) < 12
    rows = pd.read_parquet(tmp_path / "table", dtype_backend="numpy_nullable")
    assert (rows["status"] == "ok").all()
    undisturbed = run_sweep_here(toy_params(), tmp_path / "undisturbed")
    assert determined(rows).equals(determined(undisturbed))


def pickled(folder):
    """Weights as a pickle that runs a command when it is loaded, under the name of a safetensors file."""
    weights = Path(folder) / "model.safetensors"
    weights.write_bytes(pickle.dumps(Bomb(folder)))


class Bomb:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (Path.touch, (Path(self.folder) / "exploded",))


def pickled_only(folder):
    pickled(folder)
    (Path(folder) / "model.safetensors").rename(Path(folder) / "pytorch_model.bin")


def truncated(folder):
    weights = Path(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def with_one_bit_flipped(folder, place):
    weights = Path(folder) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[place] ^= 1
    weights.write_bytes(data)


@pytest.fixture
def study(tmp_path):
    """A study of two tiny checkpoints, the draft's to be damaged."""
    places = {name: write_checkpoint(tmp_path / name) for name in ("target", "draft")}
    return toy_params().model_copy(update={"pair": "custom", "prompt_set": "mixed", **places})


@pytest.mark.parametrize("damage", [truncated, pickled, pickled_only])
def test_damaged_and_pickled_weights_are_refused_before_they_are_read(study, damage, tmp_path):
    damage(study.draft)
    with pytest.raises(ValueError, match=r"draft.*(is damaged or truncated|holds no safetensors file)"):
        run_sweep_here(study, tmp_path / "out")
    assert not (tmp_path / "draft" / "exploded").exists()
    assert not cells_in(tmp_path / "out")


def test_weights_that_change_between_runs_are_other_cells(study, tmp_path, capsys):
    """A flipped bit in numbers is a valid file: its hash is in every cell's id, so that rows never mix."""
    first = run_sweep_here(study, tmp_path / "out")
    before = cells_in(tmp_path / "out")
    with_one_bit_flipped(study.draft, place=-1)
    second = run_sweep_here(study, tmp_path / "out")
    assert not set(first["cell_id"]) & set(second["cell_id"])
    assert before.items() <= cells_in(tmp_path / "out").items()
    assert "12 cells of other params, weights, versions or devices are kept" in capsys.readouterr().out


def test_params_that_change_between_runs_keep_the_old_cells_apart(tmp_path, capsys):
    """They are on disk, counted in the environment beside the params of their run, and used again by who goes back."""
    study, folder = toy_params(), tmp_path
    first = run_sweep_here(study, folder)
    longer = run_sweep_here(study.model_copy(update={"max_new_tokens": [9]}), folder)
    assert not set(first["cell_id"]) & set(longer["cell_id"])
    assert set(longer["max_new_tokens"]) == {9}
    environment = read_environment(folder)
    assert environment["cells_of_other_studies"] == 12
    assert environment["runs"][first["run_id"][0]]["params"]["max_new_tokens"] == [8]
    capsys.readouterr()
    assert run_sweep_here(study, folder).equals(first)
    assert "12 are finished, 0 to run" in capsys.readouterr().out


def test_a_damaged_file_of_a_cell_is_measured_again(tmp_path):
    rows = run_sweep_here(toy_params(), tmp_path)
    files = sorted((tmp_path / "cells").glob("*.json"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    (tmp_path / "cells" / "abc.json.1.tmp").write_text("of a process that was killed while it wrote")
    assert determined(run_sweep_here(toy_params(), tmp_path)).equals(determined(rows))
    assert sorted((tmp_path / "cells").iterdir()) == files


if __name__ == "__main__":
    on_a_small_disk(Path(sys.argv[1]), sys.argv[2])
