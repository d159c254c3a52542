"""Files that are there whole or not at all, and one run at a time on a folder; one clear line where that fails."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}  # of file systems that know no flock
SOFT = ".marker"  # ends the name of a file that stands for a lock where there are none


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into a RuntimeError of one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise RuntimeError(
            f"cannot write to {folder} ({error.strerror}): what is finished there is kept; make room or choose another "
            "folder with --outputs, then run the same command again"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a temporary file of this process, then rename it to `path`: readers see the old text or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `folder/<name>.lock` until this process ends, however it ends; ValueError if another run has it.

    On a file system without locks, a marker file stands for it: that of a process that was killed is passed over by
    later ones on the same machine only.
    """
    try:
        lock = _acquired(folder / f"{name}.lock")
    except Timeout as error:
        left = f"; if none runs, delete {error.lock_file}" if error.lock_file.endswith(SOFT) else ""
        raise ValueError(
            f"{folder} is in use by another run: wait until it ends, stop it, or give this run another folder "
            f"with --outputs{left}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path) -> FileLock | SoftFileLock:
    """The lock at `path`, held; Timeout if another process holds it."""
    lock: FileLock | SoftFileLock = FileLock(path, fallback_to_soft=False)  # an old lock file would pass for a marker
    try:
        lock.acquire(timeout=0)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(path.with_suffix(SOFT))
        lock.acquire(timeout=0)
    return lock


def now() -> str:
    """The time in UTC, to the second, as files note it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
