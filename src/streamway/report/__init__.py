"""What a run leaves for people: a journal of its steps, and one page made from it."""

from streamway.report.journal import RunJournal, StepRecord, step
from streamway.report.page import render_page

__all__ = ["RunJournal", "StepRecord", "render_page", "step"]
