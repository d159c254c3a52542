"""Files that are there whole or not at all, and one run at a time on a folder; one clear line where that fails."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}


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
    """Hold the lock `folder/<name>.lock` until this process ends, however it ends; ValueError if another run has it."""
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder} is in use by another run: wait until it ends, stop it, or give this run another folder "
            "with --outputs"
        ) from None
    try:
        yield
    finally:
        lock.release()


def now() -> str:
    """The time in UTC, to the second, as files note it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
