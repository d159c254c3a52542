"""A published head for a target: refused before the target's weights are read, or loaded next to it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specdec_lib.models.loading.checkpoints import refusing
from specdec_lib.models.loading.presets import Checkpoint
from specdec_lib.models.loading.weights import fetch_weights, is_local
from specdec_lib.models.published.config import NATIVE, PublishedConfig, other_target, read_config
from specdec_lib.models.published.dflash import DFlashHead
from specdec_lib.models.published.eagle3 import Eagle3Head
from specdec_lib.models.published.files import OWN, check_tensors, read_shapes, read_tensors, scored_ids
from specdec_lib.models.published.head import PublishedHead
from specdec_lib.models.published.mtp import MtpHead
from specdec_lib.models.published.peagle import PEagleHead
from specdec_lib.models.runner import LanguageModel

HEADS: dict[str, type[PublishedHead]] = {
    "eagle3": Eagle3Head,
    "peagle": PEagleHead,
    "mtp": MtpHead,
    "dflash": DFlashHead,
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedHead:
    """A head whose config and tensors fit a target, and which is not loaded yet."""

    folder: Path
    config: PublishedConfig
    scored_ids: torch.Tensor
    head: PublishedHead  # on the device "meta"

    def load(self, target: LanguageModel) -> PublishedHead:
        """The head with its weights, in the target's element type and on its device."""
        self.head.fill(read_tensors(self.folder, _kept(self.config)), self.scored_ids, target)
        return self.head


def check_head(checkpoint: Checkpoint, target: Checkpoint, target_config: Any, tensor_parallel: int = 1) -> None:
    """Refuse a head for `target` from small files alone, and from the headers of a local folder's weights.

    Warns if it was made for another target.

    Raises:
        ValueError: an unknown layout, other sizes than the target's, missing tensors, or a target that is spread over
            several devices.
    """
    config = _read_config(checkpoint, target, target_config, tensor_parallel)
    if is_local(*(files := _files_of(checkpoint, target))):
        _checked(Path(files.where), config)


def fetch_head(checkpoint: Checkpoint, target: Checkpoint, target_config: Any, tensor_parallel: int = 1) -> CheckedHead:
    """The same with its files on this machine, ready to be loaded."""
    config = _read_config(checkpoint, target, target_config, tensor_parallel)
    with refusing(checkpoint.where):
        folder = fetch_weights(*_files_of(checkpoint, target), pickled=True)
    return _checked(folder, config)


def _read_config(
    checkpoint: Checkpoint, target: Checkpoint, target_config: Any, tensor_parallel: int
) -> PublishedConfig:
    if tensor_parallel > 1:
        raise ValueError(f"tensor_parallel is {tensor_parallel}: a draft head needs the target on one device, give 1")
    config = read_config(checkpoint, target_config)
    if made_for := other_target(config, [target.where, getattr(target_config, "name_or_path", "")]):
        logger.warning(
            "%s was made for %s, not for %s: few drafts may be accepted", config.where, made_for, target.where
        )
    return config


def _files_of(checkpoint: Checkpoint, target: Checkpoint) -> Checkpoint:
    """Where the tensors of a head are."""
    return target if checkpoint.where == NATIVE else checkpoint


def _kept(config: PublishedConfig) -> str:
    """How the names of a head's tensors begin in its files."""
    return OWN if config.where == NATIVE else ""


def _checked(folder: Path, config: PublishedConfig) -> CheckedHead:
    with torch.device("meta"):
        head = HEADS[config.kind](config)
    check_tensors(config, head, read_shapes(folder, _kept(config)))
    return CheckedHead(folder, config, scored_ids(config, folder), head)
