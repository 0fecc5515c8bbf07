"""The verbs of the command line: results as JSON, refusals with a code and a next step, nothing started by looking."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from streamway.cli import main
from streamway.sandbox.hub_repository import add_commit

CONFIG = """
model: {id: org/name}
storage: {release_root: "gs://watched/models"}
server: {name: endpoint}
pipeline: {image: "us-docker.pkg.dev/p/r/streamway:1"}
launch: {service_account: runner@p.iam.gserviceaccount.com}
"""
SECRET = "correct-horse-battery-staple"


class Terminal:
    def __init__(self, folder: Path, part: Any) -> None:
        self.part = part
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG)

    def run(self, *words: str, code: int = 0) -> tuple[str, str]:
        """Run a command, with the configuration where a word says CONFIG; return what it printed and said."""
        out, err = io.StringIO(), io.StringIO()
        given = [str(self.config) if word == "CONFIG" else word for word in words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == code, err.getvalue()
        return out.getvalue(), err.getvalue()

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json")[0])

    def jobs(self) -> list[Any]:
        return list(self.part.call(f"{self.part.place}/pipelineJobs").get("pipelineJobs", []))


@pytest.fixture
def terminal(tmp_path: Path, queueing: Any) -> Terminal:
    return Terminal(tmp_path, queueing)


def test_a_dry_run_shows_what_would_be_asked_for_and_asks_for_nothing(terminal: Terminal) -> None:
    shown = terminal.json("submit", "CONFIG", "--dry-run", "--set", "model.revision=v2")
    assert shown["parameters"]["revision"] == "v2"
    assert shown["pipeline_root"] == "gs://watched/models/.pipelines"
    assert shown["place"] == f"projects/{terminal.part.project}/locations/us-central1"
    terminal.run("schedule", "create", "CONFIG", "0 4 * * *", "--dry-run")
    assert terminal.jobs() == []


def test_submitting_twice_joins_and_says_so(terminal: Terminal) -> None:
    first = terminal.json("submit", "CONFIG")
    out, said = terminal.run("submit", "CONFIG")
    assert out.strip() == first["id"]
    assert "was started already; joined it" in said
    (job,) = terminal.jobs()
    assert job["serviceAccount"] == "runner@p.iam.gserviceaccount.com"
    images = {one["container"]["image"] for one in job["pipelineSpec"]["deploymentSpec"]["executors"].values()}
    assert images == {"us-docker.pkg.dev/p/r/streamway:1"}


def test_runs_are_listed_with_their_page_and_one_is_shown_with_its_tasks(terminal: Terminal) -> None:
    run = terminal.json("submit", "CONFIG")
    assert [found["id"] for found in terminal.json("runs", "CONFIG")] == [run["id"]]
    assert run["page"] in terminal.run("runs", "CONFIG")[0]
    assert {task["name"] for task in terminal.json("runs", "CONFIG", "--id", run["id"])["tasks"]} >= {"pull-model"}
    assert "There is no run 'other'" in terminal.run("runs", "CONFIG", "--id", "other", code=80)[1]


def test_a_schedule_goes_through_its_life(terminal: Terminal) -> None:
    made = terminal.json("schedule", "create", "CONFIG", "30 4 * * mon-fri", "--time-zone", "Europe/Berlin")
    assert (made["cron"], made["time_zone"], made["state"]) == ("30 4 * * mon-fri", "Europe/Berlin", "active")
    assert terminal.json("schedule", "list", "CONFIG")[0]["name"] == "endpoint"
    assert terminal.json("schedule", "pause", "CONFIG", "endpoint")["state"] == "paused"
    assert terminal.json("schedule", "resume", "CONFIG", made["id"], "--catch-up")["state"] == "active"
    assert terminal.json("schedule", "delete", "CONFIG", "endpoint") == {"deleted": made["id"]}
    assert "there are: none at all" in terminal.run("schedule", "pause", "CONFIG", "endpoint", code=80)[1]
    assert terminal.jobs() == []


def test_a_wrong_schedule_is_refused_before_anything_is_asked(terminal: Terminal) -> None:
    assert "hour has '25'" in terminal.run("schedule", "create", "CONFIG", "0 25 * * *", code=80)[1]
    said = terminal.run("schedule", "create", "CONFIG", "0 4 * * *", "--time-zone", "Mars/Base", code=80)[1]
    assert "There is no time zone 'Mars/Base'" in said
    said = terminal.run("schedule", "create", "CONFIG", "0 4 * * *", "--end", "soon", code=80)[1]
    assert "The end 'soon' of the schedule endpoint is not a time" in " ".join(said.split())


def test_the_same_verbs_work_on_kubeflow(terminal: Terminal) -> None:
    kfp = ("--kfp", terminal.part.url, "--set", f"launch.experiment={terminal.part.project}")
    run = terminal.json("submit", "CONFIG", *kfp)
    assert terminal.json("runs", "CONFIG", *kfp)[0]["id"] == run["id"]
    assert terminal.json("schedule", "create", "CONFIG", "30 4 * * *", *kfp)["time_zone"] == "UTC"
    assert terminal.json("schedule", "delete", "CONFIG", "endpoint", *kfp)["deleted"]
    assert terminal.jobs() == []


def test_templates_are_published_with_the_image_of_the_configuration(terminal: Terminal) -> None:
    repository = f"{terminal.part.announced['registry_url']}/{terminal.part.project}/templates"
    to = ("--set", f"launch.templates={repository}", "--pipeline", "retire_model")
    (published,) = terminal.json("publish", "CONFIG", *to, "--tag", "v1")
    assert (published["name"], published["uri"]) == ("retire-model", f"{repository}/retire-model/v1")
    assert "us-docker.pkg.dev/p/r/streamway:1" in requests.get(published["uri"], timeout=10).text
    assert terminal.json("publish", "CONFIG", *to)[0]["was_there"]


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("submit", "CONFIG", "--set", "storage.release_root=/tmp/models"), 80, "can only write to a bucket"),
        (
            ("publish", "CONFIG", "--kfp", "http://127.0.0.1:9", "--tag", "v1", "--tag", "v2"),
            80,
            "--tag is given 2 times, and Kubeflow gives a version one name",
        ),
        (("submit", "CONFIG", "--set", "oops"), 2, "is not KEY=VALUE"),
        (("submit", "CONFIG", "--set", "launch.location=Mars"), 2, "launch.location is 'Mars'"),
        (("submit", "CONFIG", "--set", "sandbox={}", "--state", "/nonexistent"), 90, "No sandbox runs in"),
        (("submit", "CONFIG", "--set", "launch.servce_account=x"), 2, "perhaps you meant service_account?"),
        (("publish", "CONFIG"), 80, "launch.templates is empty"),
        (("publish", "CONFIG", "--kfp", "http://127.0.0.1:9", "--pipeline", "serve"), 80, "no pipeline 'serve'"),
        (("promote", "CONFIG", "a" * 40, "--submit"), 2, "promotion.source_root is empty"),
        (("watch", "CONFIG", "--webhook", "127.0.0.1:0"), 2, "where the webhook's secret is"),
        (("watch", "CONFIG", "--webhook", "somewhere"), 2, "is not HOST:PORT"),
        (
            ("watch", "CONFIG", "--webhook", ":0", "--secret-file", "/nonexistent"),
            2,
            "cannot be read from /nonexistent",
        ),
        (
            ("watch", "CONFIG", "--once", "--set", "watch.follow=[{id: a/b}, {id: c/d}]"),
            2,
            "two models for the endpoint endpoint",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_code_and_a_reason(
    terminal: Terminal, words: tuple[str, ...], code: int, problem: str
) -> None:
    said = " ".join(terminal.run(*words, code=code)[1].split())
    assert problem in said
    assert "Next:" in said
    assert terminal.jobs() == []


def test_an_unreachable_kubeflow_has_a_code_of_its_own(terminal: Terminal) -> None:
    assert "nothing answers there" in terminal.run("runs", "CONFIG", "--kfp", "http://127.0.0.1:9", code=81)[1]


def test_a_missing_image_is_warned_of(terminal: Terminal) -> None:
    said = terminal.run("submit", "CONFIG", "--dry-run", "--set", "pipeline.image=''")[1]
    assert "pipeline.image is empty" in said


def test_a_webhook_starts_the_run_of_a_new_commit_and_sigterm_ends_the_watch(
    start_part: Any, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = os.environ["GOOGLE_CLOUD_PROJECT"]
    start_part("bucket", "--buckets", "watched=US")
    hub = start_part("hub")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", project)
    repositories = hub.state / "hub" / "repos"
    add_commit(repositories, "org/name", {"config.json": b"1"})
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    command = [str(Path(sys.executable).with_name("streamway")), "watch", str(terminal.config), "--json"]
    watching = subprocess.Popen(
        [*command, "--webhook", "127.0.0.1:0", "--secret-file", str(tmp_path / "secret")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(line for line in watching.stderr if "listens at" in line).split("listens at ")[1].strip()
        wait_until(lambda: len(terminal.jobs()) == 1)
        sha = add_commit(repositories, "org/name", {"config.json": b"2"})
        message = {
            "event": {"action": "update", "scope": "repo.content"},
            "repo": {"type": "model", "name": "org/name", "headSha": sha},
            "updatedRefs": [{"ref": "refs/heads/main", "newSha": sha}],
        }
        assert requests.post(url, json=message, headers={"X-Webhook-Secret": "wrong"}, timeout=10).status_code == 401
        assert requests.post(url, json=message, headers={"X-Webhook-Secret": SECRET}, timeout=10).status_code == 202
        wait_until(lambda: len(terminal.jobs()) == 2)
        assert terminal.jobs()[0]["runtimeConfig"]["parameterValues"]["revision"] == sha
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(timeout=20) == 0
    finally:
        watching.kill()
        out, err = watching.communicate()
    assert SECRET not in out + err


def test_a_watch_that_cannot_listen_does_not_begin(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    taken = terminal.part.url.removeprefix("http://")
    said = terminal.run("watch", "CONFIG", "--webhook", taken, "--secret-file", str(tmp_path / "secret"), code=80)[1]
    assert f"The webhook cannot listen at {taken}: " in " ".join(said.split())
    assert "Following" not in said
    assert terminal.jobs() == []


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
