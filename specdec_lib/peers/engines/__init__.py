"""Other engines, one file each: all that this project knows of an engine stands in its file.

A new engine is one file `<name>_engine.py` in this folder; nothing else names it. The file runs in the engine's own
Python environment. So it must not import this library, and it imports its engine inside functions. It has

- `ENGINE`, a dictionary with the fields of `peers.installed.Engine`;
- `load(target, draft, method, num_draft_tokens, dtype, threads, context)`, which returns a decoding function and the
  engine's version. `target` and `draft` are what the engine reads; `context` is the most tokens of prompt and output;
- the decoding function of `emit`, `prompt` (token ids), `new_tokens`, `temperature`, `top_k`, `top_p` and `seed`. It
  ignores stop tokens, and calls `emit` with each list of new token ids as soon as it has it.
"""
