"""What a run leaves for people: a journal of its steps, and one page made from it."""

from streamway.report.finish import finish_run
from streamway.report.history import forget_starts, served_releases
from streamway.report.journal import RunJournal, StepRecord, UnreadableRecord, step
from streamway.report.page import render_page
from streamway.report.silence import Silence, explain_silence

__all__ = [
    "RunJournal",
    "Silence",
    "StepRecord",
    "UnreadableRecord",
    "explain_silence",
    "finish_run",
    "forget_starts",
    "render_page",
    "served_releases",
    "step",
]
