"""Speculative decoding, proven exact and measured (Leviathan, Kalman, Matias 2022, arXiv 2211.17192).

The public names stand in `__init__.pyi`. Each is imported when it is first asked for, as torch and transformers take
seconds, and the command line answers `--help` and most mistakes without them.
"""

import warnings

import lazy_loader

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm asks for widgets in Jupyter, and needs none

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
