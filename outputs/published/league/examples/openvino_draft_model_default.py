"""openvino, draft model, default, gamma 1: biased by 0.620 in the league table."""

from specdec_lib.exactness.league.example import show_bias

show_bias('openvino', 'draft model, token, default', 1, (1.0, 0, 1.0), samples=200, position=0)
