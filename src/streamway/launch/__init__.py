"""Compile a pipeline, and start it somewhere."""

from streamway.launch.compile import compile_pipeline
from streamway.launch.local import LocalRun, run_locally

__all__ = ["LocalRun", "compile_pipeline", "run_locally"]
