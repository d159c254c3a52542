"""A file of prompts of one's own: what is read of it, and that each mistake is one line with file, line and remedy."""

import codecs
import json

import pytest

from specdec_lib.study.prompts import load_prompts


def ours(number, category="chat", text="Hello"):
    return json.dumps({"id": str(number), "category": category, "text": text})


def question(number, category, *turns):
    return json.dumps({"question_id": number, "category": category, "turns": turns, "reference": ["not read"]})


@pytest.fixture
def written(tmp_path):
    """A function that writes lines, or the bytes that are given, and returns the path of the file."""

    def write(*lines):
        content = lines[0] if isinstance(lines[0], bytes) else "\n".join(lines).encode()
        (tmp_path / "mine.jsonl").write_bytes(content)
        return str(tmp_path / "mine.jsonl")

    return write


def ids(prompts):
    return [prompt.id for prompt in prompts]


def test_prompts_go_round_the_categories_in_order_of_appearance(written):
    lines = [ours(1, "b"), ours(2, "b"), ours(3, "b"), ours(4, "a"), ours(5, "c"), ours(6, "c")]
    assert ids(load_prompts(written(*lines))) == ["1", "4", "5", "2", "6", "3"]


def test_of_a_question_with_several_turns_the_first_alone_is_a_prompt(written):
    path = written(question(7, "writing", "Write a poem.", "Make it rhyme."), question(8, "math", "1 + 1?"))
    first, second = load_prompts(path)
    assert (first.id, first.category, first.text) == ("7", "writing", "Write a poem.")
    assert second.id == "8"


def test_with_all_turns_each_is_a_prompt_that_holds_the_turns_before_it(written):
    path = written(question(7, "writing", "Write a poem.", "Make it rhyme."), question(8, "math", "1 + 1?"))
    prompts = {prompt.id: prompt.text for prompt in load_prompts(path, "all")}
    assert prompts == {"7-1": "Write a poem.", "8-1": "1 + 1?", "7-2": "Write a poem.\n\nMake it rhyme."}


def test_both_formats_may_stand_in_one_file(written):
    assert ids(load_prompts(written(ours("x"), question(3, "math", "1 + 1?")))) == ["x", "3"]


def test_passages_are_those_of_the_file_or_else_of_the_shipped_set(written):
    own = load_prompts(written(ours(1), ours(2), ours("p", "passage", "One."), ours("q", "passage", "Two.")))
    assert [prompt.passage for prompt in own] == ["One.\n\nTwo.", "Two.\n\nOne."]
    foreign = load_prompts(written(*(ours(number) for number in range(30))))
    shipped = load_prompts("mixed")
    assert [prompt.passage for prompt in foreign] == [prompt.passage for prompt in (*shipped, *shipped[:6])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n", "\r\n\r\n"])
@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(written, end, start, last):
    text = end.join([ours(1), ours(2)]) + end * last
    assert ids(load_prompts(written(start + text.encode()))) == ["1", "2"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x7f"])
def test_only_a_line_feed_ends_a_line(written, separator):
    line = json.dumps({"id": "1", "category": "chat", "text": f"one{separator}two"}, ensure_ascii=False)
    assert [prompt.text for prompt in load_prompts(written(line, ours(2)))] == [f"one{separator}two", "Hello"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1"', r"not valid JSON \(.*, column \d+\): write one JSON object a line"),
        ("[" * 100_000, "not readable as JSON .*: write one JSON object a line"),
        ('["a"]', "a list, not an object: write one JSON object a line"),
        ("7", "a number, not an object: write one"),
        ('{"id": "1", "text": "a"}', 'no key category: write a line such as {"id": "1"'),
        ('{"question_id": 1, "category": "a"}', 'no key turns: write a line such as {"question_id"'),
        ('{"category": "a", "turns": ["a"]}', 'no key question_id: write a line such as {"question_id"'),
        (ours(1, text=" \n"), "text is empty: write a text in quotes, or leave the line out"),
        (ours(1, category=""), "category is empty"),
        (ours(1, text=["a"]), "text is a list: write a text in quotes"),
        (ours(1, category=None), "category is null: write a text in quotes"),
        ('{"id": true, "category": "a", "text": "a"}', "id is true or false: write a text in quotes or a whole number"),
        ('{"id": 1.5, "category": "a", "text": "a"}', "id is a number: write a text in quotes or a whole number"),
        ('{"id": "1", "category": "a", "text": "\\ud800"}', "text holds half of a surrogate pair.*: remove"),
        ('{"question_id": 1, "category": "a", "turns": "a"}', "turns is a text: write a list of texts, such as"),
        (question(1, "a"), "turns is empty: write a list of texts"),
        (question(1, "a", "one", ""), "turn 2 is empty"),
        (question(1, "a", 3), "turn 1 is a number: write a text in quotes"),
        (ours("known"), "id 'known' is that of line 1 too: give each prompt an id of its own"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(written, line, message):
    path = written(ours("known"), "", line, ours("next"))
    with pytest.raises(ValueError, match=rf"mine\.jsonl, line 3: {message}") as refusal:
        load_prompts(path)
    assert "\n" not in str(refusal.value)


def test_another_encoding_is_named_by_its_line(written):
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: not UTF-8: save the file in the encoding UTF-8"):
        load_prompts(written(ours(1).encode() + b'\n{"id": "2", "category": "chat", "text": "caf\xe9"}\n'))


def test_turns_may_not_take_the_id_of_another_question(written):
    path = written(question("7", "a", "one", "two"), ours("7-2"))
    assert ids(load_prompts(path)) == ["7", "7-2"]
    with pytest.raises(ValueError, match="line 2: id '7-2' is that of line 1 too"):
        load_prompts(path, "all")


@pytest.mark.parametrize("content", [b"", b"\n \r\n", codecs.BOM_UTF8, ours("p", "passage").encode()])
def test_a_file_without_prompts_is_refused(written, content):
    with pytest.raises(ValueError, match=r"mine\.jsonl: it holds no prompts: write at least one line such as {"):
        load_prompts(written(content))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ValueError, match=rf"prompt_set is {path}: .*: give the path of a JSONL file of prompts"):
            load_prompts(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1", "categry": "chat", "text": "Hello"}', "no key category, but categry: did you mean category"),
        ('{"question_id": 1, "category": "chat", "turn": ["Hello"]}', "no key turns, but turn: did you mean turns"),
    ],
)
def test_a_misspelt_key_of_a_line_is_named(written, line, message):
    with pytest.raises(ValueError, match=rf"mine\.jsonl, line 2: {message}\?: write a line such as"):
        load_prompts(written(ours("known"), line))
