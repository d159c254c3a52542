"""What a line of the league can be; without torch, so that pages render anywhere."""

EXACT, BIASED, GREEDY_ONLY, NOT_TESTED = "exact so far", "biased", "greedy only", "not tested"
