"""Each step leaves a record that says what it did or why it failed, and nothing stands in the way of its outcome."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamway.errors import StorageError, WrongAnswerError
from streamway.report import RunJournal, StepRecord, step
from streamway.report.journal import MAX_RECORD_BYTES, PROMOTION_STEPS, RETIREMENT_STEPS, STEPS


@dataclass(frozen=True)
class Result:
    uri: str
    parts: tuple[int, ...]


def test_a_step_that_succeeds_records_its_result_and_time(tmp_path: Path) -> None:
    with step("pull_model", str(tmp_path)) as running:
        running.keep(Result("gs://b/x", (1, 2)))
    (record,) = RunJournal.load(str(tmp_path)).records
    assert record.status == "succeeded"
    assert record.result == {"uri": "gs://b/x", "parts": [1, 2]}
    assert record.seconds >= 0
    assert record.error == {}


def test_a_step_that_fails_records_the_problem_the_next_step_and_the_exit_code(tmp_path: Path) -> None:
    with pytest.raises(StorageError), step("upload_model", str(tmp_path)):
        raise StorageError("The disk is full.", next_step="Free some space.")
    failed = RunJournal.load(str(tmp_path)).failed
    assert failed is not None
    assert failed.name == "upload_model"
    assert failed.error == {
        "kind": "StorageError", "problem": "The disk is full.", "next_step": "Free some space.", "exit_code": 40,
    }  # fmt: skip


def test_what_a_failing_step_found_out_is_kept(tmp_path: Path) -> None:
    error = WrongAnswerError("Wrong.")
    error.report = Result("http://x", (3,))  # type: ignore[attr-defined]
    with pytest.raises(WrongAnswerError), step("smoke_test", str(tmp_path)):
        raise error
    failed = RunJournal.load(str(tmp_path)).failed
    assert failed is not None
    assert failed.result == {"uri": "http://x", "parts": [3]}


def test_an_unexpected_error_is_recorded_as_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), step("pull_model", str(tmp_path)):
        _ = 1 / 0
    failed = RunJournal.load(str(tmp_path)).failed
    assert failed is not None
    assert failed.error["kind"] == "ZeroDivisionError"


def test_a_journal_that_cannot_be_written_does_not_hide_the_step(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StorageError, match="the real reason"), step("pull_model", str(blocked / "run")):
        raise StorageError("the real reason")
    with step("pull_model", str(blocked / "run")) as running:
        running.keep({"fine": True})


def test_termination_unwinds_a_step_and_is_recorded(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom streamway.report import step\n"
        f"with step('deploy_server', {str(tmp_path)!r}):\n"
        "    try:\n        print('in', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        print('given back', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "given back\n"
    failed = RunJournal.load(str(tmp_path)).failed
    assert failed is not None
    assert failed.error["kind"] == "Interrupted"


def test_narration_of_every_room_names_the_step(tmp_path: Path) -> None:
    code = (
        "import logging\nfrom streamway.report import step\n"
        "with step('pull_model', '') as running:\n"
        "    logging.getLogger('streamway.hub').info('resolved %s', 'main')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[:2] == ["streamway pull_model | started", "streamway pull_model | resolved main"]


RECORD = {"name": "pull_model", "status": "succeeded", "started": "2026-11-22T18:00:00+00:00", "seconds": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "a JSON list"),
        (b"[" * 200_000, "not JSON"),
        (b"{}", "no name, status"),
        (json.dumps(RECORD | {"status": "perhaps"}).encode(), "its status is 'perhaps'"),
        (json.dumps(RECORD | {"result": "gone"}).encode(), "its result is of type str"),
        (json.dumps(RECORD | {"seconds": -1}).encode(), "took -1 seconds"),
        (json.dumps(RECORD | {"seconds": float("nan")}).encode(), "took nan seconds"),
        (json.dumps(RECORD | {"name": "smoke_test"}).encode(), "the record of 'smoke_test'"),
        (b" " * (MAX_RECORD_BYTES + 1), "bytes long"),
    ],
    ids=["empty", "binary", "list", "deep", "bare", "status", "result", "negative", "nan", "name", "huge"],
)
def test_a_broken_record_is_named_and_the_others_are_read(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "pull_model.json").write_bytes(data)
    with step("convert_weights", str(tmp_path)) as running:
        running.keep({"fine": True})
    journal = RunJournal.load(str(tmp_path))
    assert [record.name for record in journal.records] == ["convert_weights"]
    (unreadable,) = journal.unreadable
    assert unreadable.name == "pull_model"
    assert reason in unreadable.reason


def test_a_record_of_another_version_is_read_as_far_as_it_is_understood(tmp_path: Path) -> None:
    newer = RECORD | {"format_version": 7, "mood": "bright", "result": {"model_id": "org/name"}}
    (tmp_path / "pull_model.json").write_text(json.dumps(newer))
    (record,) = RunJournal.load(str(tmp_path)).records
    assert record.format_version == 7
    assert record.result == {"model_id": "org/name"}


def test_a_result_too_long_to_be_read_again_is_shortened(tmp_path: Path) -> None:
    with step("convert_weights", str(tmp_path)) as running:
        running.keep(
            {"moved_bytes": 5, "tensors": {f"tensor.{n}": "x" * 100 for n in range(60_000)}, "text": "y" * 10**5}
        )
    (record,) = RunJournal.load(str(tmp_path)).records
    assert record.shortened
    assert record.result["moved_bytes"] == 5
    assert 0 < len(record.result["tensors"]) < 1000


def test_a_run_knows_the_steps_of_its_kind() -> None:
    def steps(uri: str, *names: str) -> tuple[str, ...]:
        records = tuple(StepRecord(name=name, status="succeeded", started="", seconds=0) for name in names)
        return RunJournal(run_uri=uri, records=records).steps

    assert steps("gs://b/.runs/x", "pull_model") == STEPS
    assert steps("gs://b/.runs/x", "promote_release") == PROMOTION_STEPS
    assert steps("gs://b/.runs/x", "plan_retirement") == RETIREMENT_STEPS
    assert steps("gs://b/.runs/retire-model-1") == RETIREMENT_STEPS
    assert steps("gs://b/.runs/promote-model-1") == PROMOTION_STEPS
    assert steps("gs://b/.runs/x", "smoke_test", "record_passage") == (*STEPS, "record_passage")
