"""Every refusal of a gate, a submission, a schedule, a publication or a watch: what it is about, what is wrong beside
what was expected, and what to do next."""

import ast
import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import streamway
from streamway import storage
from streamway.cron import Cron
from streamway.errors import AlreadyThereError, GateError, LaunchError, ReleaseError, StorageError, StreamwayError
from streamway.launch import compile_pipeline
from streamway.launch.kfp_api import KubeflowService
from streamway.launch.publish import publish_template
from streamway.launch.schedules import create_schedule, find_by_name
from streamway.launch.service import RunRequest, RunStatus, ScheduleRequest, submit, wait_for_run
from streamway.launch.vertex import VertexService
from streamway.launch.webhook import serve_webhook, webhook_application
from streamway.storage.gates import check_passages, promote_release, record_passage
from streamway.storage.records import WEIGHTS_RECORD, PreparedWeights, RecordedFile
from streamway.storage.segments import FilePlan

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER_SHA = "f" * 40


class Place:
    """A folder with a published release, and a service on which nothing leaves its queue."""

    def __init__(self, folder: Path, queueing: Any, compiled: Path) -> None:
        self.root, self.queueing, self.compiled = str(folder / "staging"), queueing, compiled
        self.repository = f"{queueing.announced['registry_url']}/{queueing.project}/templates"
        self.release = self.publish()
        self.passed = Path(f"{self.release.uri.rstrip('/')}.passed.staging.json")

    def publish(self) -> storage.Release:
        layout = storage.ModelLayout(self.root, "org/m", SHA)
        (file,) = storage.write_files([FilePlan(uri=f"{layout.weights_uri}/model.safetensors", segments=(b"weights",))])
        recorded = RecordedFile(
            path="model.safetensors", uri=file.uri, size_bytes=7, sha256=file.sha256, crc32c=file.crc32c
        )
        prepared = PreparedWeights(
            model_id="org/m", revision="main", commit_sha=SHA, licence="mit", source="https://hub", files=(recorded,)
        )
        storage.write_file(f"{layout.weights_uri}/{WEIGHTS_RECORD}", prepared.to_json().encode())
        return storage.upload_model(weights_uri=layout.weights_uri, release_root=self.root)

    def record(self, stage: str = "staging", **evidence: Any) -> None:
        record_passage(
            model_id="org/m", commit_sha=SHA, release_root=self.root, stage=stage, run_uri=f"{self.root}/.runs/1",
            evidence={"passed": True, **evidence},
        )  # fmt: skip

    def change_record(self, **changes: Any) -> None:
        self.record()
        self.passed.write_text(json.dumps(json.loads(self.passed.read_text()) | changes))

    def check(self, *requires: str, commit_sha: str = SHA) -> None:
        check_passages(model_id="org/m", commit_sha=commit_sha, release_root=self.root, requires=requires)

    def promote(self, **changed: Any) -> None:
        asked = {"model_id": "org/m", "commit_sha": SHA, "source_root": self.root, "requires": ["staging"]}
        promote_release(**{**asked, "release_root": f"{self.root}-next", **changed})

    @property
    def service(self) -> VertexService:
        return VertexService(location="us-central1")

    @property
    def kubeflow(self) -> KubeflowService:
        return KubeflowService(self.queueing.url, experiment=self.queueing.project)

    @property
    def run(self) -> RunRequest:
        return RunRequest(
            pipeline_path=self.compiled, parameters={"name": "you"}, name="endpoint", pipeline_root="gs://bucket/root"
        )

    def schedule(self, cron: str = "30 4 * * *", zone: str = "UTC", end: str = "") -> ScheduleRequest:
        return ScheduleRequest(name="nightly", cron=Cron.parse(cron, zone=zone), run=self.run, end=end)

    def listen(self, port: int = 0) -> None:
        application = webhook_application(secret="correct-horse-battery", followed=[], on_told=print)
        taken = int(self.queueing.url.rpartition(":")[2])
        serve_webhook(application, host="127.0.0.1", port=port or taken, stop=asyncio.Event())

    def publish_template(self, *tags: str, status: int = 0) -> None:
        if status:
            self.queueing.fail_next("POST", "/registry/*", status=status)
        publish_template(self.compiled, self.repository, tags=tags)


class Full:
    """A service on which a request has been started more often than anybody would."""

    place = "projects/p/locations/l"

    def list_runs(self, *, limit: int, digest: str = "") -> tuple[RunStatus, ...]:
        return (RunStatus(id="r", display_name="", state="failed", created=""),) * limit

    def find_run(self, run_id: str) -> None:
        return None


@dataclass(frozen=True)
class Refused:
    """Something that is done, and what must answer it."""

    do: Callable[[Place], Any]
    kind: type[StreamwayError]
    said: tuple[str, ...]
    next_step: str


REFUSALS = {
    # Gates
    "no stage": Refused(
        lambda p: p.record("Stage 1"),
        GateError,
        ("'Stage 1' is not a name of a stage", "expected small letters"),
        "Name it like `staging`",
    ),
    "not proved": Refused(
        lambda p: p.record(passed=False),
        GateError,
        (f"{SHA}/ has not passed staging", "no smoke test of this commit that passed is in"),
        "Run the whole pipeline",
    ),
    "proved for another commit": Refused(
        lambda p: p.record(commit_sha=OTHER_SHA),
        GateError,
        ("has not passed staging", "no smoke test of this commit"),
        "Run the whole pipeline",
    ),
    "never passed": Refused(
        lambda p: p.check("canary", "load"),
        GateError,
        (f"{SHA}/ may not be promoted", "canary: it has not passed", "load: it has not"),
        "promotion.stage set to canary",
    ),
    "another release": Refused(
        lambda p: (p.change_record(manifest_sha256="0" * 64), p.check("staging")),
        GateError,
        ("may not be promoted", "was another release under this commit", "manifest 000000000000, expected"),
        "Run it where it is missing",
    ),
    "a record of another model": Refused(
        lambda p: (p.change_record(model_id="org/other"), p.check("staging")),
        GateError,
        ("may not be promoted", "the record speaks of staging for org/other at"),
        "promotion.stage set to staging",
    ),
    "a record without its proof": Refused(
        lambda p: (p.change_record(evidence={}), p.check("staging")),
        GateError,
        ("may not be promoted", "holds no smoke test that passed"),
        "promotion.stage set to staging",
    ),
    "a record that is none": Refused(
        lambda p: (p.passed.write_text("[]"), p.check("staging")),
        GateError,
        ("passed.staging.json is not a record that this version can read",),
        "Run that stage again",
    ),
    "no release": Refused(
        lambda p: p.check(commit_sha=OTHER_SHA),
        GateError,
        (f"There is no release {'{root}'}/org/m/{OTHER_SHA}/", "the folder has no"),
        "Check the root, the model id",
    ),
    "nothing passed, nothing copied": Refused(
        lambda p: p.promote(),
        GateError,
        ("may not be promoted", "staging: it has not passed"),
        "promotion.stage set to",
    ),
    "a damaged release": Refused(
        lambda p: (p.record(), Path(p.release.uri, "model.safetensors").write_text("[]!"), p.promote()),
        ReleaseError,
        (f"{SHA}/ is not what its manifest says", "model.safetensors"),
        "retire it and publish again",
    ),
    "a branch instead of a commit": Refused(
        lambda p: p.promote(commit_sha="main"),
        StorageError,
        ("commit 'main'", "expected 40 hex digits"),
        "Copy the whole id from the Hub's list of commits",
    ),
    "no model id": Refused(
        lambda p: p.promote(model_id="m/"),
        StorageError,
        ("model id 'm/'", "expected `org/name`"),
        "as the Hub does",
    ),
    "no root": Refused(
        lambda p: p.promote(release_root=""),
        StorageError,
        ("release root ''", "expected gs://"),
        "address of a bucket",
    ),
    # Submissions
    "too many attempts": Refused(
        lambda p: submit(Full(), p.run),
        LaunchError,  # type: ignore[arg-type]
        ("has been started 1000 times in projects/p/locations/l",),
        "Delete its old runs",
    ),
    "a taken id": Refused(
        lambda p: (p.service.create_run(p.run, "one"), p.service.create_run(p.run, "one")),
        AlreadyThereError,
        ("The run one in projects/", "exists already"),
        "Choose another name",
    ),
    "a taken name on Kubeflow": Refused(
        lambda p: (p.kubeflow.create_run(p.run, "one"), p.kubeflow.create_run(p.run, "one")),
        AlreadyThereError,
        ("http://", "has a run one already"),
        "Choose another name",
    ),
    "a run that is gone": Refused(
        lambda p: wait_for_run(p.service, "gone", timeout_seconds=5),
        LaunchError,
        ("gone is gone from projects/",),
        "Submit it again",
    ),
    "a run that takes long": Refused(
        lambda p: (p.service.create_run(p.run, "slow"), wait_for_run(p.service, "slow", timeout_seconds=0.1)),
        LaunchError,
        ("slow in projects/", "is still queued after 0 s", "it goes on"),
        "--timeout-minutes",
    ),
    "no such pipeline": Refused(
        lambda p: compile_pipeline("serve-model", Path(p.root, "x.yaml")),
        LaunchError,
        ("no pipeline 'serve-model'", "perhaps you meant serve_model?"),
        "Choose one of serve_model, promote_model",
    ),
    "no image": Refused(
        lambda p: compile_pipeline("serve_model", Path(p.root, "x.yaml"), image="a b"),
        LaunchError,
        ("'a b' is not an image reference",),
        "streamway@sha256:",
    ),
    "an image that moves": Refused(
        lambda p: compile_pipeline("serve_model", Path(p.root, "x.yaml"), image="p/streamway"),
        LaunchError,
        ("'p/streamway' may be another image tomorrow", "expected one with a tag"),
        "or its digest as @sha256:",
    ),
    # Schedules
    "another schedule of this name": Refused(
        lambda p: [
            create_schedule(p.service, p.schedule(cron), location="us-central1") for cron in ("1 1 * * *", "2 2 * * *")
        ],
        LaunchError,
        ("has a schedule nightly already, and it differs", "is '1 1 * * *', not '2 2 * * *'"),
        "streamway schedule delete",
    ),
    "no such schedule": Refused(
        lambda p: find_by_name(p.service, "weekly"),
        LaunchError,
        ("no schedule 'weekly' in projects/", "there are: none at all"),
        "streamway schedule create",
    ),
    "no such time": Refused(lambda p: p.schedule("0 25 * * *"), LaunchError, ("hour has '25'",), ""),
    "no such zone": Refused(lambda p: p.schedule(zone="Mars/Base"), LaunchError, ("no time zone 'Mars/Base'",), ""),
    "a zone on Kubeflow": Refused(
        lambda p: p.kubeflow.create_schedule(p.schedule(zone="Europe/Berlin")),
        LaunchError,
        ("nightly has the time zone Europe/Berlin, and Kubeflow has none",),
        "with --time-zone UTC",
    ),
    "catching up on Kubeflow": Refused(
        lambda p: p.kubeflow.resume_schedule("x", catch_up=True),
        LaunchError,
        ("x cannot catch up", "settled when it is created"),
        "without --catch-up",
    ),
    "an end that is none": Refused(
        lambda p: create_schedule(p.service, p.schedule(end="soon"), location="us-central1"),
        LaunchError,
        ("The end 'soon' of the schedule nightly is not a time", "expected a date"),
        "Write it like 20",
    ),
    "an end before the first time": Refused(
        lambda p: create_schedule(p.service, p.schedule(end="2020-01-01T00:00:00Z"), location="us-central1"),
        LaunchError,
        ("nightly would never fire", "ends at 2020-01-01", "first time is 20"),
        "Let it end later",
    ),
    # Publications
    "no tag": Refused(
        lambda p: p.publish_template("Latest!"),
        LaunchError,
        ("'Latest!' is not a tag", "expected small letters"),
        "such as latest or v1",
    ),
    "not signed in": Refused(
        lambda p: p.publish_template(status=401), LaunchError, ("refuses with 401",), "gcloud auth"
    ),
    "no right": Refused(
        lambda p: p.publish_template(status=403),
        LaunchError,
        ("refuses with 403",),
        "Grant roles/artifactregistry.writer",
    ),
    "no repository": Refused(
        lambda p: p.publish_template(status=404),
        LaunchError,
        ("refuses with 404",),
        "gcloud artifacts repositories create",
    ),
    "any other refusal": Refused(
        lambda p: p.publish_template(status=400),
        LaunchError,
        ("refuses with 400",),
        "Correct what it names",
    ),
    # Watches
    "a secret that keeps nobody out": Refused(
        lambda p: webhook_application(secret="short", followed=[], on_told=print),
        LaunchError,
        ("secret has 5 characters, expected at least 16",),
        "Set a long random secret",
    ),
    "an address that is taken": Refused(
        lambda p: p.listen(),
        LaunchError,
        ("The webhook cannot listen at 127.0.0.1:", "already in use"),
        "a free port",
    ),
    "no port": Refused(
        lambda p: p.listen(99999),
        LaunchError,
        ("The webhook cannot listen at 127.0.0.1:99999", "0-65535"),
        "a free port",
    ),
}


@pytest.fixture
def place(tmp_path: Path, queueing: Any, compiled: Path) -> Place:
    return Place(tmp_path, queueing, compiled)


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_what_is_wrong_and_what_to_do(place: Place, refused: Refused) -> None:
    with pytest.raises(refused.kind) as caught:
        refused.do(place)
    error, at = caught.value, 0
    for words in (words.replace("{root}", place.root) for words in refused.said):
        assert words in error.problem[at:], error.problem
        at = error.problem.index(words, at) + len(words)
    assert error.next_step
    assert refused.next_step in error.next_step
    assert not Path(f"{place.root}-next").exists()


def test_no_refusal_of_these_rooms_is_without_a_next_step() -> None:
    house = Path(streamway.__file__).parent
    looked_at = [*(house / "launch").glob("*.py"), house / "storage" / "gates.py", house / "storage" / "layout.py"]
    looked_at += [house / name for name in ("retirement.py", "preflight.py", "cron.py")]
    raised = [
        (path.name, node.lineno, {keyword.arg for keyword in node.exc.keywords})
        for path in looked_at
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and getattr(node.exc.func, "id", "") in vars(streamway.errors)
    ]
    assert len(raised) > 50
    assert [found for found in raised if "next_step" not in found[2]] == []
