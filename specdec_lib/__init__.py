"""Speculative decoding, proven exact and measured (Leviathan, Kalman, Matias 2022, arXiv 2211.17192)."""

from specdec_lib.config import SamplingConfig, StudyParams, load_params
from specdec_lib.decoding.baseline import autoregressive_decode
from specdec_lib.decoding.proposers import CompositeProposer, HeadProposer, ModelProposer, NgramProposer
from specdec_lib.decoding.result import DecodeResult
from specdec_lib.decoding.speculative import speculative_decode
from specdec_lib.decoding.transcript import Recording
from specdec_lib.models.pair import load_pair

__all__ = [
    "CompositeProposer",
    "DecodeResult",
    "HeadProposer",
    "ModelProposer",
    "NgramProposer",
    "Recording",
    "SamplingConfig",
    "StudyParams",
    "autoregressive_decode",
    "load_pair",
    "load_params",
    "speculative_decode",
]
