"""Questions as a configuration has them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.errors import SettingsError
from streamway.smoke import Question, parse_questions


def test_numbers_arrive_as_floats_and_schemas_as_mappings() -> None:
    (question,) = parse_questions(
        [{"prompt": "hi", "expect": {"type": "object"}, "match": "json_schema", "max_tokens": 16.0}]
    )

    assert question.max_tokens == 16
    assert question.accepts("{}")
    assert not question.accepts("[]")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"prompt": "hi", "expects": "x"}, "Question 1 has 'expects', expected expect, kind"),
        ({"expect": "x"}, "expected at least a prompt"),
        ("hi", "expected at least a prompt"),
        ({"prompt": " "}, "empty prompt"),
        ({"prompt": "hi", "kind": "poem"}, "kind 'poem', expected one of chat, completion"),
        ({"prompt": "hi", "match": "fuzzy"}, "match 'fuzzy'"),
        ({"prompt": "hi", "expect": "("}, "which is no regex"),
        ({"prompt": "hi", "expect": "{", "match": "json_schema"}, "which is no json_schema"),
        ({"prompt": "hi", "max_tokens": 0}, "max_tokens 0"),
    ],
)
def test_wrong_questions_are_named(entry: object, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_questions([entry])  # type: ignore[list-item]

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ('{"type": "integer", "minimum": 1, "maximum": 3}', "2", "4"),
        ('{"type": "integer"}', "2", "true"),
        ('{"type": ["string", "null"]}', "null", "1"),
        ('{"type": "array", "items": {"enum": ["a", "b"]}}', '["a", "b"]', '["c"]'),
        ('{"type": "string", "pattern": "^P"}', '"Paris"', '"Rome"'),
        ('{"required": ["city"]}', '{"city": 1}', "{}"),
    ],
)
def test_schemas_judge_answers(schema: str, good: str, bad: str) -> None:
    question = Question(prompt="x", expect=schema, match="json_schema")

    assert question.accepts(good)
    assert not question.accepts(bad)
    assert not question.accepts("no JSON at all")


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_an_exact_expectation_accepts_only_itself(text: str) -> None:
    question = Question(prompt="x", expect=text, match="exact")

    assert question.accepts(f"  {text}\n")
    assert not question.accepts(f"{text} and more")
