"""transformers 5.15.0, DFlash, default, gamma 2: biased by 0.088 in the league table."""

from specdec_lib.exactness.league.example import show_bias

show_bias('transformers 5.15.0', 'DFlash, token, default', 2, (1.5, 2, 1.0), samples=517, position=1)
