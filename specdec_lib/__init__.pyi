from .config import SamplingConfig, StudyParams
from .decoding.decode import autoregressive_decode, speculative_decode
from .decoding.proposers.composite import CompositeProposer
from .decoding.proposers.model import ModelProposer
from .decoding.proposers.ngram import NgramProposer
from .decoding.proposers.suffix import SuffixProposer
from .decoding.recording import Recording
from .decoding.result import DecodeResult
from .models.pair import load_pair
from .params_files import load_params

__all__ = [
    "CompositeProposer",
    "DecodeResult",
    "ModelProposer",
    "NgramProposer",
    "Recording",
    "SamplingConfig",
    "StudyParams",
    "SuffixProposer",
    "autoregressive_decode",
    "load_pair",
    "load_params",
    "speculative_decode",
]
