"""Hugging Face: resolve a revision, judge the model, stream its files."""

from streamway.hub.plan import PlannedFile, PullPlan, plan_pull
from streamway.hub.pull import PulledModel, pull_model
from streamway.hub.secrets import read_token

__all__ = ["PlannedFile", "PullPlan", "PulledModel", "plan_pull", "pull_model", "read_token"]
