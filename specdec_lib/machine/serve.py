"""Serve a file of ours over standard input and output, one JSON object a line, in another Python environment.

Arguments: the file, and `timed` for a decoding function whose tokens are timed. The first line holds the arguments of
the file's `load`, which returns what serves and a version; the answer holds the version.

- Timed, each further line holds the arguments of the decoding function but `emit`; the answer holds `tokens` (ids) and
  `arrivals`, [seconds since the call, tokens that arrived then].
- Otherwise each further line holds `call`, the name of a method of what serves, and its arguments; the answer holds its
  `value`. The call `load` loads again, with other arguments.

An error is answered as `error`. Between lines the process sleeps. This file imports nothing of this library.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer until standard input ends. What the engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    file = Path(sys.argv[1])
    sys.path.insert(0, str(file.parent))
    engine = importlib.import_module(file.stem)
    answer_of = timed if sys.argv[2:] == ["timed"] else called
    serving = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if serving is None or message.get("call") == "load":
                serving, version = engine.load(**{key: value for key, value in message.items() if key != "call"})
                answer = {"version": version}
            else:
                answer = answer_of(serving, message)
        except Exception as error:  # noqa: BLE001 - the other side decides what to do
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        answers.write(json.dumps(answer) + "\n")


def called(serving: Any, message: dict) -> dict:
    """Call the method that the message names."""
    return {"value": getattr(serving, message.pop("call"))(**message)}


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
