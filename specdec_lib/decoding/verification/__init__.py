"""Which draft tokens stay, and which token follows them: one file for each rule, `token.py` the one to read first."""

from specdec_lib.decoding.verification.token import (
    RANDOM,
    Verification,
    Verify,
    chance_of,
    residual_probs,
    residual_weights,
    verify,
)

__all__ = ["RANDOM", "Verification", "Verify", "chance_of", "residual_probs", "residual_weights", "verify"]
