"""A run whose worker was killed, or never came to run our code, still says which step it was and where its log is."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl

from streamway import report
from streamway.components import report_run
from streamway.launch import run_locally
from streamway.report import RunJournal, StepRecord, UnreadableRecord, explain_silence

VERTEX = "projects/my-project/locations/us-central1/pipelineJobs/smollm2-1"
DAG_FAILED = "The DAG failed because some tasks failed. The failed tasks are: [{}]."


def journal_of(*ended: str, running: str = "", unreadable: str = "", name: str = "smollm2-1") -> RunJournal:
    began = "2026-11-22T18:00:05.123+00:00"
    running_records = (StepRecord(name=running, status="running", started=began, seconds=0.0),) if running else ()
    return RunJournal(
        run_uri=f"gs://b/.runs/{name}",
        records=tuple(StepRecord(name=step, status="succeeded", started=began, seconds=1.0) for step in ended),
        unfinished=running_records,
        unreadable=(UnreadableRecord(name=unreadable, reason="it is not JSON"),) if unreadable else (),
    )


def explain(journal: RunJournal, **more: Any) -> Any:
    return explain_silence(journal, **{"state": "FAILED", "resource": VERTEX, **more})


def test_a_step_that_began_and_left_no_end_was_killed() -> None:
    silence = explain(journal_of("pull_model", running="convert_weights"))
    assert silence.step == "convert_weights"
    assert "Convert began at 2026-11-22 18:00:05 UTC and left no record of its end" in silence.problem
    assert "runs out of memory is killed without a word" in silence.problem


def test_a_step_that_never_began_is_told_apart() -> None:
    silence = explain(journal_of("pull_model"))
    assert silence.step == "convert_weights"
    assert "Convert never began to work: its worker was not started, or ended before it came to run" in silence.problem


@pytest.mark.parametrize(
    ("ended", "task", "step"),
    [
        (("pull_model",), "upload-model", "upload_model"),
        (("pull_model", "convert_weights"), "check-parameters", "check_parameters"),
        (("check_parameters",), "pull-model", "pull_model"),
        (("check_parameters",), "something-else", "pull_model"),
        (("pull_model",), "pull-model", "convert_weights"),
    ],
)
def test_the_task_that_the_service_names_is_believed_where_it_is_silent(
    ended: tuple[str, ...], task: str, step: str
) -> None:
    assert explain(journal_of(*ended), message=DAG_FAILED.format(task)).step == step


def test_on_vertex_ai_the_page_and_the_command_are_those_of_the_run() -> None:
    advice = explain(journal_of("pull_model", running="convert_weights")).next_step
    assert "the task convert-weights at https://console.cloud.google.com/vertex-ai/locations/us-central1/" in advice
    assert "pipelines/runs/smollm2-1?project=my-project" in advice
    assert "gcloud logging read 'resource.labels.pipeline_job_id=\"smollm2-1\"' --project=my-project" in advice
    assert "kubectl" not in advice


def test_a_journal_that_kubeflow_does_not_name_is_not_taken_for_a_silent_one() -> None:
    resource, run_id = "http://127.0.0.1:8888/pipelineJobs/{}", "5d89fc9b-f229-4324-a3b5-d5c4defb571c"
    seen = {"resource": resource.format(run_id), "message": DAG_FAILED.format("deploy-server")}
    silence = explain(journal_of(name=run_id), **seen)
    assert silence.step == "deploy_server"
    assert "ended as FAILED in Deploy. Why is in its journal" in silence.problem
    assert "never began" not in silence.problem
    assert "report.html in the newest folder of gs://b/.runs/." in silence.next_step
    assert f"--selector pipeline/runid={run_id} " in silence.next_step
    assert "ended as FAILED. Why" in explain(journal_of(name=run_id), **{**seen, "message": ""}).problem
    assert "was cancelled" in explain(journal_of(name=run_id), **{**seen, "state": "CANCELLED"}).problem
    # What is there is read.
    assert "left no record of its end" in explain(journal_of(running="deploy_server"), **seen).problem


def test_elsewhere_the_workflow_is_named() -> None:
    advice = explain(journal_of(name="serve-model-a1b2c"), resource="local-pipeline-exit-handler-1").next_step
    assert "--selector workflows.argoproj.io/workflow=serve-model-a1b2c" in advice
    assert "kubectl" not in explain(journal_of(name="$(reboot)"), resource="").next_step


def test_what_is_outside_of_the_steps_and_what_cannot_be_read_is_said() -> None:
    everything = journal_of(*report.RunJournal(run_uri="", records=()).steps)
    assert "every step says that it succeeded" in explain(everything).problem
    assert "the record of Upload cannot be read" in explain(journal_of("pull_model", unreadable="upload_model")).problem


def test_a_cancelled_run_is_no_failure_of_a_step() -> None:
    silence = explain(journal_of("pull_model", running="convert_weights"), state="CANCELLED")
    assert silence.problem == "The run was cancelled while Convert was at work."
    assert "goes on where it stopped" in silence.next_step


def test_a_step_that_is_killed_leaves_that_it_had_begun(tmp_path: Path) -> None:
    code = (
        "import time\nfrom streamway.report import step\n"
        f"with step('deploy_server', {str(tmp_path)!r}):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    journal = RunJournal.load(str(tmp_path))
    assert (journal.records, journal.failed) == ((), None)
    assert [record.name for record in journal.unfinished] == ["deploy_server"]
    page = report.finish_run(str(tmp_path), state="FAILED", message=DAG_FAILED.format("deploy-server"), resource=VERTEX)
    assert '<p class="word">Failed in Deploy</p>' in page
    assert "left no record of its end" in page
    assert "gcloud logging read" in page


def test_a_step_that_ends_after_all_takes_its_first_word_back(tmp_path: Path) -> None:
    with report.step("pull_model", str(tmp_path)) as running:
        assert [record.name for record in RunJournal.load(str(tmp_path)).unfinished] == ["pull_model"]
        running.keep({"fine": True})
    journal = RunJournal.load(str(tmp_path))
    assert (len(journal.records), journal.unfinished) == (1, ())


@dsl.component(base_image="python:test", install_kfp_package=False)
def pull_model(run_uri: str) -> str:
    from streamway import report

    with report.step("pull_model", run_uri):
        pass
    return "pulled"


@dsl.component(base_image="python:test", install_kfp_package=False)
def convert_weights(run_uri: str, pulled: str, killed: bool):
    import os
    import signal

    if not killed:
        import a_module_that_is_not_there  # noqa: F401
    from streamway import report

    with report.step("convert_weights", run_uri):
        os.kill(os.getpid(), signal.SIGKILL)


@dsl.pipeline(name="silent")
def silent(run_uri: str, killed: bool):
    with dsl.ExitHandler(report_run(run_uri=run_uri), name="steps"):
        pulled = pull_model(run_uri=run_uri)
        convert_weights(run_uri=run_uri, pulled=pulled.output, killed=killed)


@pytest.mark.parametrize(
    ("killed", "said"),
    [(True, "left no record of its end, so its worker was killed"), (False, "Convert never began to work")],
    ids=["killed", "fails on import"],
)
def test_the_exit_handler_of_a_real_run_says_which_step_is_silent(tmp_path: Path, killed: bool, said: str) -> None:
    compiler.Compiler().compile(silent, str(tmp_path / "silent.yaml"))
    parameters = {"run_uri": str(tmp_path / "journal"), "killed": killed}
    finished = run_locally(
        tmp_path / "silent.yaml", parameters, folder=tmp_path / "run", environment={}, on_event=lambda event: None
    )
    assert not finished.succeeded
    assert finished.report_path is not None
    page = finished.report_path.read_text()
    assert said in page
    assert "Read the log of the task convert-weights" in page
