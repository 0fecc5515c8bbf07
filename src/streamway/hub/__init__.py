"""Hugging Face: resolve a revision, judge the model, stream its files."""

from streamway.hub.at_hub import ModelAtHub, find_at_hub
from streamway.hub.plan import PlannedFile, PullPlan, plan_pull
from streamway.hub.pull import PulledModel, pull_model
from streamway.hub.reader import open_left_files
from streamway.hub.secrets import read_token

__all__ = [
    "ModelAtHub",
    "PlannedFile",
    "PullPlan",
    "PulledModel",
    "find_at_hub",
    "open_left_files",
    "plan_pull",
    "pull_model",
    "read_token",
]
