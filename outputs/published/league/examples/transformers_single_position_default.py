"""transformers, single position, default, gamma 2: biased by 0.264 in the league table."""

from specdec_lib.exactness.league.example import show_bias

show_bias('transformers', 'single position, token, default', 2, (1.0, 0, 1.0), samples=200, position=0)
