"""One run at a time on one output folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `folder/<name>.lock`; the system releases it when this process ends, however it ends.

    Raises:
        ValueError: another run holds it.
    """
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
