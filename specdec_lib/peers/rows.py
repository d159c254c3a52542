"""The rows of a comparison with other engines: where they are kept, and the names in them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FILE = "peer_rows.parquet"
OURS, TRANSFORMERS = "specdec_lib", "transformers"  # engines


def read_peers(folder: Path) -> pd.DataFrame:
    """The rows of a comparison with other engines, one for each call; what is undefined is null.

    Raises:
        ValueError: there are none yet.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: run the comparison first, with make bench-peers GPU=<name>")
    return pd.read_parquet(path, dtype_backend="numpy_nullable")
