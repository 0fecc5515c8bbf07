"""Proof that an endpoint answers, correctly, as the model that was deployed."""

from streamway.errors import SmokeTestError, WrongAnswerError
from streamway.smoke.gate import smoke_test
from streamway.smoke.page import render_html
from streamway.smoke.questions import Question, parse_questions
from streamway.smoke.report import Answer, Check, SmokeReport, summarise
from streamway.smoke.soundness import find_garbage

__all__ = [
    "Answer",
    "Check",
    "Question",
    "SmokeReport",
    "SmokeTestError",
    "WrongAnswerError",
    "find_garbage",
    "parse_questions",
    "render_html",
    "smoke_test",
    "summarise",
]
