"""A local run tells each step's story, and whatever ends it, nothing that it started lives on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp import compiler, dsl

from streamway.launch.local import StepEvent, run_locally


@dsl.component(base_image="streamway:test", install_kfp_package=False)
def pull_model(fail: bool, seconds: float, marker: str):
    import logging
    import os
    import time
    from pathlib import Path

    from streamway import report
    from streamway.errors import StorageError

    with report.step("pull_model", ""):
        Path(marker).write_text(str(os.getpid()))
        logging.getLogger("streamway.hub").info("looking")
        time.sleep(seconds)
        if fail:
            raise StorageError("The bucket b does not exist.", next_step="Create it.")


@dsl.component(base_image="streamway:test", install_kfp_package=False)
def report_run(page: dsl.Output[dsl.HTML], status: dsl.PipelineTaskFinalStatus):
    from pathlib import Path

    Path(page.path).write_text(f"<p>{status.state}")


@dsl.pipeline(name="serve-model")
def one_step(fail: bool = False, seconds: float = 0.0, marker: str = ""):
    with dsl.ExitHandler(report_run(), name="six steps"):
        pull_model(fail=fail, seconds=seconds, marker=marker)


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(one_step, str(path))
    return path


def run(compiled: Path, folder: Path, **parameters: object) -> tuple[object, list[StepEvent]]:
    events: list[StepEvent] = []
    parameters = {"marker": str(folder.parent / "marker"), **parameters}
    return run_locally(compiled, parameters, folder=folder, environment={}, on_event=events.append), events


def lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_until(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_tells_the_story_of_each_step_in_order(compiled: Path, tmp_path: Path) -> None:
    finished, events = run(compiled, tmp_path / "run")
    assert finished.succeeded
    assert [event.kind for event in events] == ["started", "said", "succeeded"]
    assert events[1].text == "looking"


def test_the_report_and_the_whole_log_are_kept(compiled: Path, tmp_path: Path) -> None:
    finished, _ = run(compiled, tmp_path / "run")
    assert finished.report_path.read_text() == "<p>SUCCEEDED"
    assert "Executing task" in finished.log_path.read_text()
    assert not (tmp_path / "run" / "tmp").exists()


def test_a_failed_step_gives_its_error_and_still_a_report(compiled: Path, tmp_path: Path) -> None:
    finished, events = run(compiled, tmp_path / "run", fail=True)
    assert not finished.succeeded
    assert events[-1].kind == "failed"
    assert finished.error == {
        "kind": "StorageError", "problem": "The bucket b does not exist.", "next_step": "Create it.", "exit_code": 40,
    }  # fmt: skip
    assert finished.report_path.read_text() == "<p>FAILED"


def test_a_pipeline_that_cannot_be_read_fails_without_a_step(tmp_path: Path) -> None:
    broken = tmp_path / "pipeline.yaml"
    broken.write_text("nothing: here\n")
    finished, events = run(broken, tmp_path / "run")
    assert not finished.succeeded
    assert events == []


RUNNER = """
import sys
from pathlib import Path
from streamway.launch.local import run_locally
folder = Path(sys.argv[2])
try:
    run_locally(Path(sys.argv[1]), {"seconds": 120.0, "marker": str(folder.parent / "marker")}, folder=folder,
                environment={}, on_event=lambda event: None)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def endless(compiled: Path, tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", RUNNER, str(compiled), str(tmp_path / "run")])
    marker = tmp_path / "marker"
    wait_until(lambda: marker.exists() and marker.read_text())
    yield process, int(marker.read_text())
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_every_task(endless, number: int) -> None:
    process, task = endless
    process.send_signal(number)
    assert process.wait(timeout=20) == 130
    assert not lives(task)


def test_a_runner_that_is_killed_leaves_no_task_behind(endless) -> None:
    process, task = endless
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not lives(task))
    assert not lives(task)
