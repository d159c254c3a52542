"""One run at a time on a folder, also on a file system that knows no locks."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from specdec_lib.machine.files import locked

HOLD = """
import errno, fcntl, os, pathlib, sys
def refuses(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = refuses
from specdec_lib.machine.files import locked
with locked(pathlib.Path(sys.argv[1]), "run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["ENOSYS", "ENOTSUP", "ENOLCK"])
def without_locks(request, monkeypatch):
    """`flock` answers as on Lustre, or NFS without a lock daemon."""
    number = getattr(errno, request.param)

    def refuses(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)


def test_a_marker_stands_for_a_lock_where_there_are_none(without_locks, tmp_path):
    (tmp_path / "run.lock").touch()  # of a run when the folder lay elsewhere
    for _ in range(2):
        with locked(tmp_path, "run"):
            assert (tmp_path / "run.marker").exists()
        assert not (tmp_path / "run.marker").exists()


def test_a_marker_keeps_another_run_out_until_its_process_ends_however_it_ends(tmp_path, monkeypatch):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "not implemented")))
        with pytest.raises(ValueError, match=r"in use by another run: .*; if none runs, delete .*run\.marker"):
            locked(tmp_path, "run").__enter__()
        holder.kill()
    with locked(tmp_path, "run"):
        pass


def test_another_fault_of_the_system_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "input/output error")))
    with pytest.raises(OSError, match="input/output error"):
        locked(tmp_path, "run").__enter__()
