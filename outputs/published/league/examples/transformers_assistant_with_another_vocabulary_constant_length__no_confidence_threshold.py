"""transformers, assistant with another vocabulary, constant length, no confidence threshold, gamma 2: biased by 0.625 in the league table."""

from specdec_lib.exactness.league.example import show_bias

show_bias('transformers', 'assistant with another vocabulary, token, constant length, no confidence threshold', 2, (1.0, 0, 1.0), samples=200, position=0)
