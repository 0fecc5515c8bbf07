"""A new commit starts one run, once, however many watchers look and whenever one of them dies."""

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from streamway import storage
from streamway.errors import LaunchError
from streamway.hub.newest import find_newest
from streamway.launch.service import RunRequest, RunStatus
from streamway.launch.vertex import VertexService
from streamway.launch.watch import Followed, Look, Watcher, look_until, starter, watch
from streamway.sandbox.hub_repository import add_commit


class World:
    """A Hub with a model of the test's own, a bucket and a Vertex AI."""

    def __init__(self, hub: Any, vertex: Any, compiled: Path) -> None:
        self.hub = hub
        self.vertex = vertex
        self.compiled = compiled
        self.model = Followed(
            model_id=f"org/name-{uuid.uuid4().hex[:8]}", revision="main", name="endpoint", namespace="models"
        )
        self.root = f"gs://watched/{self.model.model_id}"
        self.number = 0

    def push(self, text: str = "") -> str:
        self.number += 1
        content = (text or str(self.number)).encode()
        return add_commit(self.hub.state / "hub" / "repos", self.model.model_id, {"config.json": content})

    def watcher(self) -> Watcher:
        service = VertexService(location="us-central1")
        return Watcher(state_root=self.root, start=starter(service, self.request))

    def request(self, model: Followed, commit_sha: str) -> RunRequest:
        parameters = {"name": commit_sha}
        return RunRequest(
            pipeline_path=self.compiled, parameters=parameters, name=model.name, pipeline_root="gs://watched/root"
        )

    def runs(self) -> list[dict[str, Any]]:
        jobs = self.vertex.call(f"{self.vertex.place}/pipelineJobs").get("pipelineJobs", [])
        return [job["runtimeConfig"]["parameterValues"] for job in jobs]

    def claim(self, sha: str) -> str:
        return f"{self.root}/.watch/models/endpoint/{self.model.model_id}/main/{sha}.json"


@pytest.fixture(scope="module")
def parts(start_shared: Any) -> Any:
    return {"hub": start_shared("hub"), "bucket": start_shared("bucket", "--buckets", "watched=US")}


@pytest.fixture
def world(parts: Any, queueing: Any, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for part in parts.values():
        for name in part.announced["environment"].keys() - {"GOOGLE_CLOUD_PROJECT"}:
            monkeypatch.setenv(name, part.announced["environment"][name])
    yield World(parts["hub"], queueing, compiled)


def test_a_new_commit_starts_one_run_pinned_to_it(world: World) -> None:
    first = world.push()
    watcher = world.watcher()
    look = watcher.look(world.model)
    assert (look.outcome, look.commit_sha) == ("started", first)
    assert watcher.look(world.model).outcome == "unchanged"
    second = world.push()
    assert watcher.look(world.model).outcome == "started"
    assert [run["name"] for run in world.runs()] == [second, first]


def test_a_watcher_that_begins_later_finds_the_run_that_was_started(world: World) -> None:
    world.push()
    started = world.watcher().look(world.model)
    found = world.watcher().look(world.model)
    assert (found.outcome, found.run, found.page) == ("unchanged", started.run, started.page)
    assert len(world.runs()) == 1


def test_a_commit_that_changed_nothing_is_asked_for_cheaply(world: World) -> None:
    world.push()
    watcher = world.watcher()
    watcher.look(world.model)
    world.hub.send("DELETE", "/sandbox/counters")
    assert watcher.look(world.model).outcome == "unchanged"
    (request,) = world.hub.call("/sandbox/counters")["requests"]
    assert (request["count"], request["statuses"], request["bytes_out"]) == (1, {"304": 1}, 0)


def test_many_watchers_at_once_start_one_run(world: World) -> None:
    world.push()
    watchers = [world.watcher() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        looks = list(pool.map(lambda watcher: watcher.look(world.model), watchers))
    assert [look.outcome for look in looks].count("started") == 1
    assert {look.outcome for look in looks} <= {"started", "taken", "unchanged"}
    assert len(world.runs()) == 1


LOOK = """
import sys
from pathlib import Path
from streamway.launch.service import RunRequest
from streamway.launch.vertex import VertexService
from streamway.launch.watch import Followed, Watcher, starter
compiled, root, model_id = sys.argv[1:]
def request(model, commit_sha):
    return RunRequest(pipeline_path=Path(compiled), parameters={"name": commit_sha}, name=model.name,
                      pipeline_root="gs://watched/root")
watcher = Watcher(state_root=root, start=starter(VertexService(location="us-central1"), request))
print("ready", flush=True)
sys.stdin.readline()
print(watcher.look(Followed(model_id=model_id, revision="main", name="endpoint", namespace="models")).outcome)
"""


def test_endpoints_of_one_name_in_two_namespaces_follow_apart(world: World) -> None:
    sha = world.push()
    outcomes = [
        world.watcher().look(replace(world.model, namespace=namespace)).outcome
        for namespace in ("models", "staging", "models")
    ]
    assert outcomes == ["started", "started", "unchanged"]
    assert storage.exists(world.claim(sha)) and storage.exists(world.claim(sha).replace("/models/", "/staging/"))


def test_watchers_of_several_processes_start_one_run(world: World) -> None:
    world.push()
    command = [sys.executable, "-c", LOOK, str(world.compiled), world.root, world.model.model_id]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        outcomes = [process.communicate("go\n", timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert outcomes.count("started\n") == 1
    assert len(world.runs()) == 1


class DiedError(BaseException):
    """Ends a watcher where a kill would."""


def leave_claim(world: World) -> None:
    """Have a watcher claim the newest commit, and die before it starts the run."""

    def die(*_: Any) -> RunStatus:
        raise DiedError

    with pytest.raises(DiedError):
        Watcher(state_root=world.root, start=die).look(world.model)


def test_a_watcher_that_died_before_it_started_anything_is_replaced(world: World) -> None:
    sha = world.push()
    leave_claim(world)
    assert world.watcher().look(world.model).outcome == "taken"
    grow_old(world.claim(sha))
    assert world.watcher().look(world.model).outcome == "started"
    assert len(world.runs()) == 1


def test_a_watcher_that_died_after_it_started_the_run_is_replaced_without_another_run(world: World) -> None:
    sha = world.push()
    watcher = world.watcher()
    start = watcher._start

    def start_and_die(*given: Any) -> RunStatus:
        start(*given)
        raise DiedError

    with pytest.raises(DiedError):
        Watcher(state_root=world.root, start=start_and_die).look(world.model)
    grow_old(world.claim(sha))
    assert watcher.look(world.model).outcome == "started"
    assert len(world.runs()) == 1


def grow_old(uri: str) -> None:
    claim = json.loads(storage.read_file(uri))
    claim["claimed"] = (datetime.now(UTC) - timedelta(minutes=11)).isoformat()
    storage.write_file(uri, json.dumps(claim).encode())


def test_a_service_that_refuses_leaves_the_commit_to_the_next_look(world: World) -> None:
    sha = world.push()
    watcher = world.watcher()
    world.vertex.fail_next("POST", f"{world.vertex.place}/pipelineJobs", status=503)
    failed = watcher.look(world.model)
    assert (failed.outcome, "does not answer" in failed.error) == ("failed", True)
    assert not storage.exists(world.claim(sha))
    assert watcher.look(world.model).outcome == "started"
    assert len(world.runs()) == 1


def test_a_branch_that_is_set_back_is_followed_back(world: World) -> None:
    first = world.push("a")
    watcher = world.watcher()
    watcher.look(world.model)
    world.push("b")
    watcher.look(world.model)
    refs = world.hub.state / "hub" / "repos" / world.model.model_id / "refs.json"
    refs.write_text(json.dumps({"refs/heads/main": first}))
    look = watcher.look(world.model)
    assert (look.outcome, look.commit_sha) == ("started", first)
    assert world.watcher().look(world.model).outcome == "unchanged"
    assert len(world.runs()) == 3


def test_a_model_that_is_not_there_is_told_and_no_run_started(world: World) -> None:
    look = world.watcher().look(Followed(model_id="org/other", revision="main", name="endpoint", namespace="models"))
    assert look.outcome == "failed"
    assert "org/other is not on" in look.error
    assert world.runs() == []


def test_a_claim_that_cannot_be_read_is_named(world: World) -> None:
    sha = world.push()
    storage.write_file(world.claim(sha), b"[]")
    look = world.watcher().look(world.model)
    assert look.outcome == "failed"
    assert world.claim(sha) in look.error
    assert "Next: Delete it; the commit is taken up." in look.error


class MeddlingProxy(BaseHTTPRequestHandler):
    """Stands before the bucket; whoever has asked about a claim has it overwritten, or deleted, before it is read."""

    target = ""
    deletes = False
    meddled = 0
    at_most = 0

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, answer = self._pass_on(self.command, self.path, body or None, dict(self.headers))
        place, _, query = self.path.partition("?")
        if status == 200 and self.command == "GET" and "main%2F" in place and "alt=media" not in query:
            self._meddle(place)
        self.send_response(status)
        for name in {"Content-Type", "X-Goog-Generation", "X-Goog-Hash", "Content-Range"} & set(headers):
            self.send_header(name, headers[name])
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def _meddle(self, place: str) -> None:
        kind = type(self)
        if kind.meddled == kind.at_most:
            return
        kind.meddled += 1
        if kind.deletes:
            assert self._pass_on("DELETE", place, None, {})[0] < 300
            return
        _, _, data = self._pass_on("GET", f"{place}?alt=media", None, {})
        bucket, _, name = place.partition("/b/")[2].partition("/o/")
        upload = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}"
        assert self._pass_on("POST", upload, data, {"Content-Type": "application/json"})[0] == 200

    def _pass_on(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(self.target + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()


@pytest.fixture
def meddling(world: World, parts: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[MeddlingProxy]]:
    class Handler(MeddlingProxy):
        target = parts["bucket"].url

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    yield Handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("times", "outcome"), [(3, "taken"), (1000, "failed")])
def test_a_claim_that_is_written_while_it_is_read_is_read_again_but_not_for_ever(
    world: World, meddling: type[MeddlingProxy], times: int, outcome: str
) -> None:
    sha = world.push()
    leave_claim(world)
    meddling.at_most = times

    look = world.watcher().look(world.model)

    assert look.outcome == outcome
    assert 3 <= meddling.meddled < 100
    told = f"{world.claim(sha)} is written to all the time. Next: Look who does; one watcher is enough."
    assert look.error == (told if outcome == "failed" else "")
    assert world.runs() == []


def test_a_claim_that_is_taken_back_while_it_is_read_leaves_the_commit_to_who_reads(
    world: World, meddling: type[MeddlingProxy]
) -> None:
    world.push()
    leave_claim(world)
    meddling.deletes, meddling.at_most = True, 1

    assert world.watcher().look(world.model).outcome == "started"
    assert meddling.meddled == 1
    assert len(world.runs()) == 1


def test_models_are_looked_at_in_turn_and_failing_ones_less_often(world: World) -> None:
    world.push()
    lost = Followed(model_id="org/lost", revision="main", name="lost", namespace="models")
    stop, looks = threading.Event(), []

    def note(look: Look) -> None:
        looks.append(look)
        if len([one for one in looks if one.followed == world.model]) == 12:
            stop.set()

    watch(world.watcher(), [lost, world.model], interval_seconds=0.05, stop=stop, on_look=note)
    failed = [look for look in looks if look.followed == lost]
    assert looks[0] in failed
    assert 2 <= len(failed) < 8
    assert len(world.runs()) == 1


def test_a_look_after_a_webhook_waits_until_the_hub_knows_the_commit(world: World) -> None:
    world.push()
    watcher = world.watcher()
    watcher.look(world.model)
    told = "f" * 40
    assert look_until(watcher, world.model, told, pauses=(0.01, 0.01)).commit_sha != told
    sha = world.push()
    assert look_until(watcher, world.model, sha, pauses=(0.01,)).outcome == "started"
    assert look_until(watcher, world.model, "", pauses=(60,)).outcome == "unchanged"


def test_the_newest_commit_that_is_known_is_not_sent_again(world: World) -> None:
    sha = world.push()
    newest = find_newest(world.model.model_id, "main")
    assert newest.commit_sha == sha
    assert find_newest(world.model.model_id, "main", known=newest) is newest


def test_a_folder_serves_as_the_place_of_claims_too(world: World, tmp_path: Path) -> None:
    world.push()
    runs: list[str] = []

    def start(_: Followed, commit_sha: str, attempt: int) -> RunStatus:
        runs.append(f"{commit_sha}-{attempt}")
        return RunStatus(id=runs[-1], display_name="", state="queued", created="")

    watchers = [Watcher(state_root=str(tmp_path / "models"), start=start) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda watcher: watcher.look(world.model), watchers))
    assert len(runs) == 1

    def refuse(*_: Any) -> RunStatus:
        raise LaunchError("no")

    world.push()
    assert Watcher(state_root=str(tmp_path / "models"), start=refuse).look(world.model).outcome == "failed"
    assert watchers[0].look(world.model).outcome == "started"
