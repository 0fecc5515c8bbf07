"""The process that runs a compiled pipeline for launch.local: started as a group leader, ended with its group."""

import ctypes
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(pipeline_path: str, folder: str) -> int:
    """Run the pipeline with the parameters of `folder`/parameters.json; 0 when it succeeded."""
    _end_with_parent()
    # Every task's image is a stand-in for this very environment, which is what the warning is about.
    warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
    # The sizes of workers mean nothing here, and KFP says so for every task.
    warnings.filterwarnings("ignore", message=r"Task .* settings .* have no effect")
    from kfp import components, local

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=folder, raise_on_error=True)
    pipeline = components.load_component_from_text(json.dumps(_without_retries(pipeline_path)))
    parameters = json.loads((Path(folder) / "parameters.json").read_text(encoding="utf-8"))
    try:
        pipeline(**parameters)
    except RuntimeError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this process's output is the run's log
        return 1
    return 0


def _without_retries(pipeline_path: str) -> dict[str, Any]:
    """Read the pipeline without what the services try again when a worker is lost.

    Here the worker is this machine: trying again would only make a person wait for the same error.
    """
    spec: dict[str, Any] = yaml.safe_load(Path(pipeline_path).read_text(encoding="utf-8"))
    for component in (spec.get("root", {}), *spec.get("components", {}).values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return spec


def _end_with_parent() -> None:
    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        # The tasks unwind on SIGTERM; the parent, where there is one, kills what is left.
        os._exit(143)

    signal.signal(signal.SIGTERM, end)
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
