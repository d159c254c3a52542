"""What the tokens of two tokenizers have in common, and that a draft reads what the target wrote."""

import logging
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import TEXTS, byte_level, sentencepiece, wordpiece, wrapped
from tokenizers import AddedToken, Tokenizer, models

from specdec_lib.models.token_texts import Token, TokenTexts
from specdec_lib.models.translation import NONE, retokeniser, translate, warn_if_useless

KINDS = {
    "byte-level": byte_level,
    "another byte-level": lambda: byte_level(330, ("</s>", "<pad>")),
    "SentencePiece": sentencepiece,
    "SentencePiece without a first space": lambda: sentencepiece(100, prepend=False),
    "WordPiece": wordpiece,
}
WHOLE = [name for name in KINDS if name != "WordPiece"]  # these can write any text
text = st.text(st.characters(codec="utf-8", exclude_characters="▁"), min_size=1, max_size=20)


@cache
def texts_of(kind):
    return TokenTexts(KINDS[kind](), kind)


@cache
def translation(target, draft):
    tokenizers = KINDS[target](), KINDS[draft]()
    return translate(*tokenizers, tuple(len(each) for each in tokenizers))


def read(translated, draft, ids):
    """What the draft reads for these tokens of the target, as bytes."""
    tokens = torch.tensor([ids])
    ends = translated.ends(tokens, torch.tensor([len(ids)]))
    return draft.text(translated.spelled(tokens, ends, torch.tensor([0]), int(ends[0, -1]))[0].tolist())


def test_a_word_reads_alike_in_every_vocabulary():
    for kind in KINDS:
        texts = texts_of(kind)
        assert texts.text([texts.ids[Token(b" the")]]) == b" the"


def test_a_byte_of_a_character_is_a_byte():
    for kind in ("byte-level", "SentencePiece"):
        assert Token("é".encode()[:1]) in texts_of(kind).ids


def test_an_ordinary_token_comes_before_the_byte_it_could_be_spelled_with():
    texts, tokenizer = texts_of("SentencePiece"), sentencepiece()
    assert texts.ids[Token(b"e")] == tokenizer.convert_tokens_to_ids("e")
    assert tokenizer.convert_tokens_to_ids("<0x65>") < texts.ids[Token(b"e")]


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60, deadline=None)
@given(text)
@example(" the dog")
@example("  two  spaces\n\t")
@example("naïve 日本 🙂")
def test_tokens_spell_any_text(kind, written):
    texts = texts_of(kind)
    assert texts.text(texts.spell([written.encode()])[0]) == written.encode()


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=6))
def test_tokens_spell_any_bytes(kind, written):
    texts = texts_of(kind)
    assert texts.text(texts.spell([written])[0]) == written


PAIRS = [(target, draft) for target in WHOLE for draft in KINDS if target != draft]


@pytest.mark.parametrize(("target", "draft"), PAIRS, ids=str)
def test_shared_tokens_have_one_text_and_one_counterpart(target, draft):
    mine, theirs, found = texts_of(target), texts_of(draft), translation(target, draft)
    shared = [(token_id, other) for token_id, other in enumerate(found.draft_ids.tolist()) if other != NONE]
    assert len({other for _, other in shared}) == len(shared) > 30
    roles = {KINDS[target]().eos_token_id, KINDS[target]().bos_token_id}
    assert all(mine.tokens[token_id] == theirs.tokens[other] for token_id, other in shared if token_id not in roles)
    assert [found.spelling[found.starts[token_id]].item() for token_id, _ in shared] == [other for _, other in shared]
    assert (found.lengths[[token_id for token_id, _ in shared]] == 1).all()


@pytest.mark.parametrize(("target", "draft"), [pair for pair in PAIRS if pair[1] in WHOLE], ids=str)
@settings(max_examples=40, deadline=None)
@given(text)
@example(TEXTS[1])
def test_the_draft_reads_what_the_target_wrote(target, draft, written):
    mine = texts_of(target)
    ids = mine.spell([written.encode()])[0]
    assert read(translation(target, draft), texts_of(draft), ids) == written.encode()


def test_what_is_read_is_a_window_of_the_whole():
    """Ragged rows, from any place on: the same tokens as cut from the whole text."""
    found, target = translation("byte-level", "SentencePiece"), byte_level()
    rows = [target(line)["input_ids"] for line in TEXTS[:3]]
    whole = [
        [t for token_id in row for t in found.spelling[found.starts[token_id] :][: found.lengths[token_id]].tolist()]
        for row in rows
    ]
    counts = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(3, int(counts.max()), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    ends = found.ends(tokens, counts)
    assert ends[:, -1].tolist() == [len(row) for row in whole]
    start = torch.tensor([0, 5, 4])
    window = found.spelled(tokens, ends, start, 12)
    assert window.tolist() == [row[first : first + 12] for row, first in zip(whole, start.tolist(), strict=True)]


def test_logits_of_shared_tokens_keep_their_proportions():
    found = translation("byte-level", "SentencePiece")
    logits = torch.randn(2, len(sentencepiece()), generator=torch.Generator().manual_seed(0))
    mapped = found.target_logits(logits)
    shared = found.draft_ids != NONE
    assert torch.equal(mapped[:, shared], logits[:, found.draft_ids[shared]])
    assert (mapped[:, ~shared] == -torch.inf).all()


def test_an_uncased_draft_reads_the_words_that_it_has():
    found, theirs = translation("byte-level", "WordPiece"), texts_of("WordPiece")
    ids = byte_level()("The dog")["input_ids"]
    assert read(found, theirs, ids).strip() == b"the dog"


def test_ends_of_text_are_shared_whatever_their_names():
    found = translation("byte-level", "SentencePiece")
    assert found.draft_ids[byte_level().eos_token_id] == sentencepiece().eos_token_id


def family(*added):
    """One vocabulary with added tokens of its own, as distilled and reasoning models have them."""
    backend = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    backend.add_tokens([AddedToken(name, special=False) for name in added])
    return wrapped(backend, eos_token="<|end|>")


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        ((), ("<tool>",)),
        (("<think>", "</think>"), ()),
        (("<think>", "</think>"), ("<tool>", "</tool>", "<more>")),
    ],
    ids=["draft has more", "target has more", "other names at the same ids"],
)
def test_a_few_added_tokens_keep_rows_as_long_as_the_target_s(target, draft):
    """So that drafting goes the way of one vocabulary: same ids, one token for each token."""
    tokenizers = family(*target), family(*draft)
    sizes = len(tokenizers[0]) + 10, len(tokenizers[1]) + 3  # models pad their output layers
    found = translate(*tokenizers, sizes)
    assert (found.longest, found.same_ids, found.retokenise) == (1, True, None)
    assert found.num_shared == len(byte_level())
    assert found.share_of_text == 1.0
    assert int(found.spelling.max()) < sizes[1]
    assert found.target_logits(torch.zeros(1, sizes[1])).isfinite().sum() == len(byte_level())


def test_the_same_vocabulary_needs_no_translation():
    assert translate(byte_level(), byte_level(), (400, 512)) is None


def test_the_same_tokens_with_other_ids_are_all_shared():
    words = [f"w{i}" for i in range(20)]
    one, other = (word_level(each, "w0") for each in (words, words[::-1]))
    found = translate(one, other, (20, 20))
    assert found.draft_ids.tolist() == list(range(19, -1, -1))
    assert (found.longest, found.same_ids) == (1, False)


def word_level(words, unk=None):
    ids = {word: token_id for token_id, word in enumerate(words)}
    return wrapped(Tokenizer(models.WordLevel(ids, unk_token=unk or words[0])), unk_token=unk or words[0])


def test_a_small_overlap_is_said_with_its_number_and_text_is_proposed(caplog):
    words = [f"w{i}" for i in range(20)]
    found = translate(word_level(words), word_level(words[:4] + [f"v{i}" for i in range(16)]), (20, 20))
    assert found.retokenise is not None
    with caplog.at_level(logging.WARNING):
        warn_if_useless(found, "the draft")
    assert "4 of the target's 20 tokens are the draft's too, 20% of those in an ordinary text" in caplog.text


def test_text_becomes_the_target_s_tokens_up_to_the_first_that_is_none():
    target, draft = byte_level(), sentencepiece()
    retokenise = retokeniser(texts_of("byte-level"), texts_of("SentencePiece"), len(target))
    ids = draft(" the lazy dog", add_special_tokens=False)["input_ids"]
    assert target.decode(retokenise([*ids, draft.eos_token_id, *ids])).strip() == "the lazy dog"
    half = draft.convert_tokens_to_ids(["<0xE6>", "<0x97>"])  # of a character of three bytes
    assert target.decode(retokenise([*ids, *half])).strip() == "the lazy dog"


def test_no_token_in_common_is_refused_in_one_line():
    one, other = word_level([f"w{i}" for i in range(9)]), word_level([f"v{i}" for i in range(9)])
    with pytest.raises(ValueError, match="small has no token in common with large") as refusal:
        translate(one, other, (9, 9), ("large", "small"))
    assert "\n" not in str(refusal.value)
