"""A draft with another vocabulary than its target: which tokens they share, and how the draft reads all others.

Timor et al. 2025 (arXiv 2502.05202). Token-level intersection: the draft's distribution is restricted to the shared
tokens and renormalised. The target may still emit any token. Where few tokens are shared the draft proposes text
instead, which the target's tokenizer cuts into tokens (string-level exact match).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import transformers

from specdec_lib.models.token_texts import TokenTexts

USEFUL = 0.5  # a draft that shares fewer of an ordinary text's tokens than that proposes text instead of tokens
LONGEST = 8  # the draft reads at most so many tokens, the last ones, for one of the target's
NONE = -1
SAMPLE = """The quick brown fox jumps over the lazy dog. In 1969, two people walked on the Moon for the first time; what
they saw there is still being studied. "Why does it matter?" she asked, and he couldn't answer at once.

def mean(values: list[float]) -> float:
    return sum(values) / len(values)  # fails if there are none

1. Solve 3x + 7 = 22 for x. First subtract 7 from both sides, then divide by 3: x = 5.
2. Translate "the weather is nice today" into German: Das Wetter ist heute schön.
"""

logger = logging.getLogger(__name__)
Retokenise = Callable[[Sequence[int]], list[int]]  # the draft's tokens of a text to the target's


@dataclass(frozen=True, eq=False)
class Translation:
    """The tokens of a target as a draft knows them.

    Attributes:
        draft_ids: `[V]` int64, the draft's token for each of the target's V; -1 where there is none.
        spelling: `[N]` int64, the draft's tokens for each of the target's, one after the other.
        starts, lengths: `[V]` int64, which part of `spelling` is each token's: one token if it is shared, else 1 to
            `LONGEST`.
        longest: the largest of `lengths`.
        same_ids: whether every shared token has the same id in both.
        retokenise: set for a draft that proposes text: makes its tokens the target's.
        share_of_text: of the tokens of an ordinary text, how many are shared, 0 to 1.
    """

    draft_ids: torch.Tensor
    spelling: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    longest: int
    same_ids: bool
    retokenise: Retokenise | None = None
    share_of_text: float = 1.0

    @classmethod
    def of(
        cls,
        draft_ids: Sequence[int],
        spelled: Sequence[Sequence[int]],
        retokenise: Retokenise | None = None,
        share_of_text: float = 1.0,
    ) -> Translation:
        """Made from the draft's id of each of the target's tokens, -1 for none, and the draft's tokens for each."""
        lengths = torch.tensor([len(tokens) for tokens in spelled])
        return cls(
            torch.tensor(draft_ids),
            torch.tensor([token for tokens in spelled for token in tokens]),
            lengths.cumsum(0) - lengths,
            lengths,
            int(lengths.max()),
            _same_ids(draft_ids),
            retokenise,
            share_of_text,
        )

    def to(self, device: torch.device) -> Translation:
        """The same on a device."""
        tensors = ("draft_ids", "spelling", "starts", "lengths")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    @property
    def num_shared(self) -> int:
        """The target's tokens that the draft has too."""
        return int((self.draft_ids != NONE).sum())

    def facts(self) -> dict[str, object]:
        """What a run notes of it in environment.json."""
        return {
            "vocabularies": "text is proposed" if self.retokenise else "shared tokens are proposed",
            "shared_tokens": self.num_shared,
            "target_tokens": len(self.draft_ids),
            "share_of_text": round(self.share_of_text, 3),
        }

    def sentence(self) -> str:
        """The overlap in words."""
        return (
            f"{self.num_shared:,} of the target's {len(self.draft_ids):,} tokens are the draft's too, "
            f"{self.share_of_text:.0%} of those in an ordinary text"
        )

    def target_logits(self, logits: torch.Tensor) -> torch.Tensor:  # [..., V_draft] -> [..., V]
        """The draft's logits as those of the target's tokens: -inf for a token that is not shared.

        What is left is normalised by whatever makes probabilities of logits.
        """
        if self.same_ids:
            logits = fit_vocabulary(logits, len(self.draft_ids))
        else:
            logits = logits.index_select(-1, self.draft_ids.clamp(min=0))
        return logits.masked_fill(self.draft_ids == NONE, float("-inf"))

    def read_as(self, tokens: torch.Tensor) -> torch.Tensor:
        """The first token that the draft reads for each of the target's, of the same shape: all of a shared one."""
        return self.spelling[self.starts[tokens]]

    def ends(self, tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:  # [B, n], [B] -> [B, n]
        """Where each token of a row ends in the draft's text; tokens past a row's count take no place there."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return (self.lengths[tokens] * (place < counts[:, None])).cumsum(dim=1)

    def spelled(
        self, tokens: torch.Tensor, ends: torch.Tensor, start: torch.Tensor, width: int
    ) -> torch.Tensor:  # [B, n], [B, n], [B] -> [B, width]
        """The draft's text of each row from position `start` on; whatever lies past the end of the text is any token.

        Args:
            ends: from `ends` for the same tokens.
        """
        places = start[:, None] + torch.arange(width, device=tokens.device)
        which = torch.searchsorted(ends, places, right=True).clamp(max=tokens.shape[1] - 1)
        token = tokens.gather(1, which)
        length = self.lengths[token]
        within = (places - ends.gather(1, which) + length).minimum(length - 1)
        return self.spelling[self.starts[token] + within]


def fit_vocabulary(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Cut or pad `[..., V_draft]` to `[..., V]`: models of one family pad the same vocabulary to different widths."""
    extra = vocab_size - logits.shape[-1]
    return torch.nn.functional.pad(logits, (0, extra), value=float("-inf")) if extra else logits


def translate(
    target: transformers.PreTrainedTokenizerBase,
    draft: transformers.PreTrainedTokenizerBase,
    sizes: tuple[int, int],
    names: tuple[str, str] = ("the target", "the draft"),
) -> Translation | None:
    """Compare two tokenizers; None if their vocabularies are the same.

    Args:
        sizes: rows of the two models' output layers, which may be more or fewer than a tokenizer's tokens.
        names: of the two models, for errors.

    Raises:
        ValueError: no token is shared, or a tokenizer cannot be compared.
    """
    if target.get_vocab() == draft.get_vocab():
        return None
    mine, theirs = (TokenTexts(each, name) for each, name in zip((target, draft), names, strict=True))
    draft_ids = _shared(mine, theirs, sizes)
    if not any(not token.special and token in theirs.ids for token in mine.ids):
        raise ValueError(
            f"{names[1]} has no token in common with {names[0]}, so it cannot draft for it: choose a draft whose "
            "tokenizer is for the same kind of text"
        )
    _share_roles(draft_ids, target, draft, sizes)
    share = _share_of_text(target, draft_ids)
    by_text = share < USEFUL
    return Translation.of(
        draft_ids,
        _spelled(mine, theirs, draft_ids, sizes[1]),
        retokenise=retokeniser(mine, theirs, sizes[0]) if by_text else None,
        share_of_text=share,
    )


def warn_if_useless(translation: Translation | None, draft: str) -> None:
    """Say so, with the number, if a draft shares too few tokens with its target to propose tokens."""
    if translation is not None and translation.share_of_text < USEFUL:
        logger.warning(
            "%s: %s, below the %.0f %% with which a draft is of use: it proposes text, of which the target's tokenizer "
            "makes tokens, and few may be accepted",
            *(draft, translation.sentence(), 100 * USEFUL),
        )


def _shared(mine: TokenTexts, theirs: TokenTexts, sizes: tuple[int, int]) -> list[int]:
    """The draft's id of each of the target's tokens with the same text; the first of several with that text has it."""
    draft_ids = [NONE] * sizes[0]
    for token, token_id in mine.ids.items():
        their_id = theirs.ids.get(token, NONE)
        if token_id < sizes[0] and their_id < sizes[1]:
            draft_ids[token_id] = their_id
    return draft_ids


def _share_roles(
    draft_ids: list[int],
    target: transformers.PreTrainedTokenizerBase,
    draft: transformers.PreTrainedTokenizerBase,
    sizes: tuple[int, int],
) -> None:
    """Tokens that begin and end a text are shared, whatever they are called, unless they alone had other ids."""
    same_ids = _same_ids(draft_ids)
    for role in ("eos_token_id", "bos_token_id"):
        mine, theirs = getattr(target, role), getattr(draft, role)
        if mine is None or theirs is None or mine >= sizes[0] or theirs >= sizes[1]:
            continue
        if draft_ids[mine] == NONE and theirs not in draft_ids and (mine == theirs or not same_ids):
            draft_ids[mine] = theirs


def _same_ids(draft_ids: Sequence[int]) -> bool:
    """Whether every shared token has the same id in both vocabularies."""
    return all(theirs in (mine, NONE) for mine, theirs in enumerate(draft_ids))


def _share_of_text(target: transformers.PreTrainedTokenizerBase, draft_ids: Sequence[int]) -> float:
    """Of an ordinary text's tokens, how many are shared; of the vocabulary's, if the target cannot write the text."""
    ids = target(SAMPLE, add_special_tokens=False)["input_ids"]
    written = [token_id for token_id in ids if token_id != target.unk_token_id]
    counted = [token_id for token_id in written or target.get_vocab().values() if token_id < len(draft_ids)]
    return sum(draft_ids[token_id] != NONE for token_id in counted) / max(len(counted), 1)


def _spelled(mine: TokenTexts, theirs: TokenTexts, draft_ids: Sequence[int], draft_size: int) -> list[list[int]]:
    """The draft's tokens for each of the target's.

    Where the ids of both agree but for added tokens, those keep their id too, so that rows are as long in both.
    """
    spelled = [[token_id] for token_id in draft_ids]
    others = [token_id for token_id, (theirs_id,) in enumerate(spelled) if theirs_id == NONE]
    tokens = {token_id: mine.tokens[token_id] if token_id < len(mine.tokens) else None for token_id in others}
    if _same_ids(draft_ids) and all(token is None or token_id in mine.added for token_id, token in tokens.items()):
        for token_id in others:
            spelled[token_id] = [min(token_id, draft_size - 1)]
        return spelled
    texts = theirs.spell([token.text if token else b"" for token in tokens.values()])
    for token_id, text in zip(others, texts, strict=True):
        spelled[token_id] = [their_id for their_id in text if their_id < draft_size][-LONGEST:] or [0]
    return spelled


def retokeniser(mine: TokenTexts, theirs: TokenTexts, target_size: int) -> Retokenise:
    """What makes tokens of the target from the draft's: none where the target would read them otherwise."""

    def retokenise(draft_tokens: Sequence[int]) -> list[int]:
        plain = []  # up to the first token without a text
        for token_id in draft_tokens:
            token = theirs.tokens[token_id] if token_id < len(theirs.tokens) else None
            if token is None or token.special:
                break
            plain.append(token_id)
        text = theirs.text(plain).decode("utf-8", errors="ignore").encode()  # a character cut at the end is dropped
        ids = mine.spell([text])[0] if text else []
        return [token_id for token_id in ids if token_id < target_size] if mine.text(ids) == text else []

    return retokenise
