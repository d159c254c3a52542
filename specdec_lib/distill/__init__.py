"""Distilling a draft from a target, from nothing but the target itself."""

from specdec_lib.distill.make import make_draft

__all__ = ["make_draft"]
