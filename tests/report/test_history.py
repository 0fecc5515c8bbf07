"""A cold start is shown beside those before it, and nothing that is wrong with them stands in its way."""

import json
from pathlib import Path

import pytest

from streamway import report
from streamway.report.history import KEPT, SHOWN, earlier_starts
from streamway.report.journal import RunJournal
from tests.report.conftest import deployed, write_run


def starts_of(run: Path) -> list[str]:
    return [start.run for start in earlier_starts(RunJournal.load(str(run)))]


def folder_of(root: Path) -> Path:
    return root / ".runs" / "endpoints" / "models" / "smollm2"


def test_the_newest_starts_before_this_one_are_shown(tmp_path: Path) -> None:
    for day in range(1, 10):
        run = write_run(tmp_path, f"serve-model-{day}", day)
        report.finish_run(str(run), state="SUCCEEDED")
    assert starts_of(run) == [f"serve-model-{day}" for day in range(8, 8 - SHOWN, -1)]
    page = (run / "report.html").read_text()
    assert "08 Nov 18:00: stop old revision 20.1 s" in page
    assert "Median before" in page


def test_a_run_that_is_reported_twice_is_remembered_once(tmp_path: Path) -> None:
    run = write_run(tmp_path, "serve-model-1", 1)
    for _ in range(2):
        report.finish_run(str(run), state="SUCCEEDED")
    assert len(list(folder_of(tmp_path).iterdir())) == 1
    assert starts_of(run) == []


def test_only_a_run_that_succeeded_is_remembered(tmp_path: Path) -> None:
    run = write_run(tmp_path, "serve-model-1", 1, smoke_test=RuntimeError("wrong"))
    report.finish_run(str(run), state="FAILED")
    assert not folder_of(tmp_path).exists()


def test_a_server_that_was_ready_already_is_no_start(success: Path) -> None:
    run = write_run(success.parent.parent, "serve-model-23", 23, deploy_server=deployed(0))
    path = run / "deploy_server.json"
    record = json.loads(path.read_text())
    record["result"]["phases"] = []
    path.write_text(json.dumps(record))
    page = report.finish_run(str(run), state="SUCCEEDED")
    assert "Nothing had to start: the server was ready already." in page
    assert "20 Nov 18:00: stop" in page
    assert len(list(folder_of(success.parent.parent).iterdir())) == 4


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"{}", b'{"format_version": 1, "phases": 3}', b'{"format_version": 2, "phases": [["a", 1]]}',
     b'{"format_version": 1, "phases": [["a"], 5, null]}', b" " * (70 << 10), b"[" * 60_000],
)  # fmt: skip
def test_a_garbled_start_is_left_out(success: Path, data: bytes) -> None:
    (folder_of(success.parent.parent) / "20261121T180000Z-serve-model-21.json").write_bytes(data)
    assert starts_of(success) == [f"serve-model-{day}" for day in (20, 19, 18, 17)]


def test_a_failed_deployment_is_shown_beside_earlier_starts_of_its_endpoint(success: Path) -> None:
    failed = write_run(success.parent.parent, "serve-model-23", 23, deploy_server=RuntimeError("no node"))
    page = report.finish_run(str(failed), state="FAILED", name="smollm2", namespace="models")
    assert "The server did not become ready in 1 min 09 s. Starts that came to serve before:" in page
    assert "20 Nov 18:00: stop" in page
    other = report.finish_run(str(failed), state="FAILED", name="smollm2", namespace="production")
    assert "Earlier cold starts" not in other


def test_a_run_that_never_came_to_deploy_speaks_of_no_start(success: Path) -> None:
    failed = write_run(success.parent.parent, "serve-model-23", 23, pull_model=RuntimeError("no such model"))
    page = report.finish_run(str(failed), state="FAILED", name="smollm2", namespace="models")
    assert "cold start" not in page.lower()


@pytest.mark.parametrize(("name", "namespace"), [("../..", "models"), ("smollm2", ".."), ("", ""), ("a/b", "models")])
def test_only_an_endpoint_has_starts_to_be_forgotten(success: Path, name: str, namespace: str) -> None:
    before = sorted(success.parent.rglob("*.json"))
    assert report.forget_starts(str(success), name=name, namespace=namespace) == 0
    assert sorted(success.parent.rglob("*.json")) == before


def test_what_is_forgotten_of_one_endpoint_is_kept_of_another(success: Path) -> None:
    other = folder_of(success.parent.parent).parent / "smollm2-large" / "20261121T180000Z-serve-model-21.json"
    other.parent.mkdir()
    other.write_text("{}")
    assert report.forget_starts(str(success), name="smollm2", namespace="models") == 4
    assert starts_of(success) == []
    assert other.exists()
    assert report.forget_starts(str(success), name="smollm2", namespace="models") == 0


def test_old_starts_are_forgotten(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    for number in range(KEPT + 10):
        (folder / f"20260101T{number:06d}Z-run.json").write_text("{}")
    report.finish_run(str(write_run(tmp_path, "serve-model-1", 1)), state="SUCCEEDED")
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == KEPT
    assert kept[-1].endswith("serve-model-1.json")


def test_an_endpoint_with_a_hostile_name_has_no_history(tmp_path: Path) -> None:
    run = write_run(tmp_path, "serve-model-1", 1)
    path = run / "deploy_server.json"
    path.write_text(path.read_text().replace('"endpoint": "smollm2"', '"endpoint": "../../escaped"'))
    report.finish_run(str(run), state="SUCCEEDED")
    assert not (tmp_path / ".runs" / "endpoints").exists()
    assert [found.name for found in tmp_path.rglob("escaped*")] == []


def test_a_folder_that_cannot_be_written_costs_only_the_copy(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    page = report.finish_run(str(blocked / "run"), state="FAILED", message="the bucket is gone")
    assert "the bucket is gone" in page
