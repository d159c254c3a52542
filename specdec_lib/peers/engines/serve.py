"""Serve one engine over standard input and output, one JSON object a line, in the engine's own Python environment.

The first line holds the arguments of the engine's `load`; the answer holds its version. Each further line holds the
arguments of the decoding function; the answer holds `tokens` (ids) and `arrivals`, [seconds since the call, tokens that
arrived then]. An error is answered as `error`. Between lines the process sleeps.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Answer until standard input ends. What the engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    file = Path(sys.argv[1])
    sys.path.insert(0, str(file.parent))
    engine = importlib.import_module(file.stem)
    decode = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if decode is None:
                decode, version = engine.load(**message)
                answer = {"version": version}
            else:
                answer = timed(decode, message)
        except Exception as error:  # noqa: BLE001 - the other side decides what to do
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        answers.write(json.dumps(answer) + "\n")


def timed(decode: Callable[..., None], message: dict) -> dict:
    """Decode, and note when tokens arrive."""
    tokens: list[int] = []
    arrivals: list[tuple[float, int]] = []

    def emit(new: list[int]) -> None:
        arrivals.append((time.perf_counter() - started, len(new)))
        tokens.extend(new)

    started = time.perf_counter()
    decode(emit, **message)
    return {"tokens": tokens, "arrivals": arrivals}


if __name__ == "__main__":
    main()
