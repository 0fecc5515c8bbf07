# ruff: noqa: RUF001  letters of other scripts are the point here
"""Noise is told from answers without knowing the right one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.smoke import find_garbage


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("  \n ", "empty"),
        ("<|im_end|><|im_end|>", "special tokens"),
        ("\ufffd\ufffd a", "not text"),
        ("ha" * 20 + "h", "repeats 'ha'"),
        ("no no no no", "repeats 'no'"),
        ("x", "single character"),
        ("海是广阔的 蓝色的 深的", "mostly Cjk letters, while it was asked in Latin"),
    ],
)
def test_noise_is_named(answer: str, reason: str) -> None:
    assert reason in find_garbage(answer, prompt="Write about the sea.")


@pytest.mark.parametrize(
    "answer",
    [
        "The sea is wide.",
        "Yes.",
        "42",
        "ha ha",
        "It is 北京, the capital.",
        "A A B B A A B B C",
        "1, 2, 3, 4, 5, 6, 7, 8",
    ],
)
def test_answers_are_left_alone(answer: str) -> None:
    assert find_garbage(answer, prompt="Write about the sea.") == ""


def test_an_expected_answer_may_be_short_and_in_any_script() -> None:
    assert find_garbage("4", prompt="What is two and two?", expected=True) == ""
    assert find_garbage("北京是中国首都", prompt="Say it in Chinese", expected=True) == ""


def test_an_answer_in_the_script_of_its_question_is_sound() -> None:
    assert find_garbage("Море широкое и синее.", prompt="Напиши о море.") == ""


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="abcdefg ,.", min_size=1, max_size=6).filter(str.strip), st.integers(13, 40))
def test_every_short_unit_repeated_is_found(unit: str, times: int) -> None:
    assert "repeats" in find_garbage(unit * times, expected=True)
