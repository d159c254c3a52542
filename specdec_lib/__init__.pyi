from .config import SamplingConfig, StudyParams, load_params
from .decoding.baseline import autoregressive_decode
from .decoding.proposers import CompositeProposer, HeadProposer, ModelProposer, NgramProposer
from .decoding.result import DecodeResult
from .decoding.speculative import speculative_decode
from .decoding.transcript import Recording
from .models.pair import load_pair

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
