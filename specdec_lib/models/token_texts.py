"""What text each token of a tokenizer stands for, so that tokens of two tokenizers can be compared, and text spelled.

A token's text is what it adds after other text, as bytes: " the" for `Ġthe` of a byte-level vocabulary, for `▁the` of
SentencePiece and for `the` of WordPiece; "ing" for `ing` and `##ing`; one byte for `<0xE2>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import transformers
from tokenizers import Tokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
AFTER = "a"  # a token's text is taken after this one, because many decoders drop a space at the start


class Token(NamedTuple):
    """The text of a token. A special token is none: its text is a name, which no text spells."""

    text: bytes
    special: bool = False


class TokenTexts:
    """The tokens of a tokenizer by their texts.

    Attributes:
        tokens: the text of each id; None for an id without a token, and for a token without a text.
        ids: the id of each text. Of tokens with the same text an ordinary one comes before one that stands for a
            byte, and then the lower id.
        filler: an id that stands for what cannot be spelled.

    Raises:
        ValueError: there is no tokenizer.json behind this tokenizer, so its tokens have no texts to compare.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase, where: str):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"{where} has a tokenizer without tokenizer.json, so its tokens cannot be compared with another "
                "vocabulary: choose a target and a draft with the same vocabulary"
            )
        described = backend.to_str()
        self._backend = Tokenizer.from_str(described)  # a copy: what follows must not change the caller's
        self._backend.no_padding()
        self._backend.no_truncation()
        self.names = {token_id: name for name, token_id in self._backend.get_vocab(with_added_tokens=True).items()}
        self.added = {token_id: token.special for token_id, token in self._backend.get_added_tokens_decoder().items()}
        kinds = set(_kinds(json.loads(described)["decoder"]))
        self.tokens = self._texts(kinds)
        self.ids: dict[Token, int] = {}
        found = [(self._is_byte(token_id), token_id, token) for token_id, token in enumerate(self.tokens) if token]
        for _, token_id, token in sorted(found):
            self.ids.setdefault(token, token_id)
        self.longest = max((len(token.text) for token in self.ids), default=0)
        fillers = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
        self.filler = next(token_id for token_id in fillers if token_id is not None)

    def spell(self, texts: Sequence[bytes]) -> list[list[int]]:
        """Tokens that read as each text, as this tokenizer would write it after other text.

        A text that its normalisation changes (an uncased vocabulary) gets the tokens of the changed text. One that it
        cannot write at all gets the filler.
        """
        readable = [text.decode("utf-8", errors="ignore") for text in texts]
        whole = self._backend.encode_batch(readable, add_special_tokens=False)
        without_space = self._backend.encode_batch(
            [text.removeprefix(" ") for text in readable], add_special_tokens=False
        )
        spelled = []
        for text, *encodings in zip(texts, whole, without_space, strict=True):
            candidates = [encoding.ids for encoding in encodings]
            exact = next((ids for ids in candidates if self.text(ids) == text), None) or self._longest_matches(text)
            spelled.append(exact or candidates[0] or [self.filler])
        return spelled

    def text(self, ids: Sequence[int]) -> bytes:
        """What these tokens read as, one after the other."""
        tokens = (self.tokens[token_id] if token_id < len(self.tokens) else None for token_id in ids)
        return b"".join(token.text for token in tokens if token)

    def _longest_matches(self, text: bytes) -> list[int] | None:
        """The text cut from its start into the longest tokens that fit; None if none fits somewhere."""
        ids: list[int] = []
        start = 0
        while start < len(text):
            ends = range(min(len(text), start + self.longest), start, -1)
            end = next((end for end in ends if Token(text[start:end]) in self.ids), None)
            if end is None:
                return None
            ids.append(self.ids[Token(text[start:end])])
            start = end
        return ids

    def _is_byte(self, token_id: int) -> bool:
        return BYTE.fullmatch(self.names[token_id]) is not None

    def _texts(self, kinds: set[str]) -> list[Token | None]:
        before = self._backend.encode(AFTER, add_special_tokens=False).ids[-1:]
        alone = self._backend.decode(before, skip_special_tokens=False)
        every = range(1 + max(self.names, default=-1))
        decoded = self._backend.decode_batch([[*before, token_id] for token_id in every], skip_special_tokens=False)
        byte_of = _bytes_of_characters() if "ByteLevel" in kinds else {}
        tokens: list[Token | None] = []
        for token_id, whole in zip(every, decoded, strict=True):
            name = self.names.get(token_id)
            if name is None:
                tokens.append(None)
            elif token_id in self.added:
                tokens.append(Token(name.encode(), self.added[token_id]))
            elif byte_of and set(name) <= byte_of.keys():
                tokens.append(Token(bytes(byte_of[character] for character in name)))
            elif "ByteFallback" in kinds and (byte := BYTE.fullmatch(name)):
                tokens.append(Token(bytes([int(byte[1], 16)])))
            else:
                text = whole.removeprefix(alone) if whole.startswith(alone) else self._backend.decode([token_id])
                tokens.append(Token(text.encode()) if text else None)
        return tokens


def _kinds(decoder: Any) -> Iterator[str]:
    """The types of a decoder and of all decoders inside it."""
    if decoder:
        yield decoder["type"]
        for inner in decoder.get("decoders", ()):
            yield from _kinds(inner)


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
