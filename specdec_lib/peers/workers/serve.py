"""Serve one engine over standard input and output, one JSON object a line, in that engine's own Python environment.

The first line holds the settings that the engine's module loads with; the answer says its version. Each further line
holds `prompt` (token ids), `new_tokens`, `temperature`, `top_k`, `top_p` and `seed`; the answer holds `tokens` (ids)
and `arrivals` ([seconds since the call, tokens that arrived]). An error is answered as `error`. Between lines the
process sleeps.
"""

import importlib
import json
import os
import sys


def main() -> None:
    """Answer until standard input ends. What the engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = importlib.import_module(sys.argv[1])
    decode = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if decode is None:
                decode, version = engine.load(**message)
                answer = {"version": version}
            else:
                tokens, arrivals = decode(**message)
                answer = {"tokens": tokens, "arrivals": arrivals}
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side decides what to do
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
