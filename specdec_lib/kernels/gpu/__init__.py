"""Triton kernels for the small operations of a step on a GPU; `ops.py` is what the library calls."""
