"""Samplers that the league table tests, one file each: all that the league knows of an engine stands in its file.

A new engine is one file `<name>_subject.py` in this folder; nothing else names it. The file is run in a process of its
own, most often in the engine's own Python environment. There it must not import this library, and it imports its engine
inside functions. It has

- `SUBJECTS`, a list of dictionaries with the fields of `league.subject.Subject`; most often one. Each lists its `ways`
  to decode: dictionaries with the fields of `league.subject.Way`;
- `load(subject, way, models, num_draft_tokens, dtype, threads)`, which returns what serves, and the engine's version.
  `subject` is the name in `SUBJECTS`, `way` the dictionary of the way, `models` the path of each tiny model by its name
  (`league.tiny_models`), as the engine reads it; `dtype` is float32 or bfloat16; `num_draft_tokens` is 0 for a way
  without drafts. What cannot be loaded raises an error that says why;
- what serves has these methods. They take and return lists of ints; none stops at a stop token.
  - `sample(prompts, n, seed, length, temperature, top_k, top_p)`: for each prompt n lists of `length` new tokens,
    independent of each other. `top_k` 0 and `top_p` 1 are off.
  - `greedy(prompts, length)`: for each prompt `length` new tokens at temperature 0;
  - `logits(texts)`, only for a way with `own_model`: for each text the target's logits of the next token, float32, from
    plain passes. Then the law is that of these; else that of `target` as transformers computes it in float32.

`in_process` has samplers of this process: our own decoding, and transformers' assisted generation, for the certificate.
"""
