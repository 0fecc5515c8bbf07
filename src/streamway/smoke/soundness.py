"""Telling an answer from noise without knowing the right one.

A model whose weights were mixed up still answers quickly, with HTTP 200: with nothing, with one token over and over, or
with fragments of many scripts. Each of these has been seen behind a green health check.
"""

import re
import unicodedata
from collections import Counter

_SPECIAL_TOKEN = re.compile(r"<\|[^|>]{1,40}\|>|</?s>|<unk>|<pad>|\[PAD\]|\[UNK\]")
_SHORTEST_REPETITION = 12
_FEWEST_REPEATS = 4
_REPLACEMENT = "\ufffd"


def find_garbage(answer: str, *, prompt: str = "", expected: bool = False) -> str:
    """Say what is unsound about an answer; empty where nothing is.

    Args:
        answer: What the model wrote.
        prompt: What it was asked; an answer is expected in its script.
        expected: Whether an expectation judges the answer too; then it may be short, and in any script.
    """
    text = answer.strip()
    if not text:
        return "the answer is empty"
    if not _SPECIAL_TOKEN.sub("", text).strip():
        return "the answer has nothing but special tokens"
    if text.count(_REPLACEMENT) * 10 > len(text):
        return "the answer is not text: it has bytes that are no UTF-8"
    if repeated := _repetition(text):
        return f"the answer repeats {repeated!r} over and over"
    if expected:
        return ""
    if len(text) == 1:
        return f"the answer is a single character, {text!r}"
    return _wrong_script(text, prompt)


def _repetition(text: str) -> str:
    """The unit that a text consists of, where it is short and repeated often."""
    words = text.split()
    if len(words) >= _FEWEST_REPEATS and len(set(words)) == 1:
        return words[0]
    if len(text) < _SHORTEST_REPETITION:
        return ""
    period = _period(text)
    return (text[:period].strip() or text[:period]) if period else ""


def _period(text: str) -> int:
    """Smallest period of a text whose last repetition may be cut off; 0 for none."""
    for period in range(1, len(text) // _FEWEST_REPEATS + 1):
        if text[period:] == text[:-period]:
            return period
    return 0


def _wrong_script(text: str, prompt: str) -> str:
    scripts, asked = _scripts(text), _scripts(prompt)
    if not scripts or not asked:
        return ""
    wanted = asked.most_common(1)[0][0]
    total = sum(scripts.values())
    if total >= 4 and scripts[wanted] * 2 < total:
        found = scripts.most_common(1)[0][0]
        return f"the answer is mostly {found.title()} letters, while it was asked in {wanted.title()}"
    return ""


def _scripts(text: str) -> Counter[str]:
    """How many letters of each script a text has, by the first word of their Unicode names."""
    return Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in text if letter.isalpha())
